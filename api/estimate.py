"""How long a job has to wait, and what is happening to it, from what the store knows. Pure."""

import math
from datetime import UTC, datetime, timedelta

from api.forecast import Forecast
from sdserve.apps import AppState, AppStatus
from sdserve.jobs import Job, JobStatus

# A replica shows up a few seconds after the wish for it, unless nothing is free to place it on.
PLACEMENT_PATIENCE = timedelta(seconds=15)
MAX_LOOK, MAX_FULL = 60, 600  # seconds, of Retry-After
OTHERS_LOOK = 5  # seconds, the least for what depends on other apps


def phase(job: Job, app: AppStatus | None, now: datetime | None = None) -> str | None:
    """What happens to this job right now, in words: the truth about a cold start."""
    if job.status is JobStatus.RUNNING:
        return "cancelling" if job.cancel_requested else job.phase
    if job.status is not JobStatus.QUEUED or app is None:
        return None
    if app.state is AppState.COLD:
        waited = (now or datetime.now(UTC)) - job.created_at
        if waited < PLACEMENT_PATIENCE:
            return "starting a process"
        return f"waiting for a {app.device}"
    if app.state is AppState.LOADING:
        return app.phase
    return f"waiting, {job.position} ahead" if job.position else "waiting, next in line"


def eta_seconds(job: Job, app: AppStatus | None) -> float | None:
    """Seconds until the result, as measurements of the app tell; None when there are none."""
    if app is None or job.status.is_final or app.state is AppState.BROKEN:
        return None
    forecast = Forecast.of(app)
    seconds = forecast.seconds_until_end(job) if forecast else None
    return None if seconds is None else round(seconds, 1)


def retry_after(seconds: float | None, app: AppStatus | None) -> int:
    """Whole seconds until a look is worth it, 1..60: the ETA, or what is known of a start."""
    if seconds is None and app is not None:
        seconds = _until_free(app)
    return min(MAX_LOOK, max(1, math.ceil(seconds or 0)))


def full_queue_retry_after(app: AppStatus) -> int:
    """Whole seconds until the next waiting job is taken up and leaves its place free; 1..600."""
    return min(MAX_FULL, max(1, math.ceil(_until_free(app))))


def full_server_retry_after(app: AppStatus) -> int:
    """The same where the places are taken by jobs of any app: nobody else's speed is known here."""
    return max(OTHERS_LOOK, full_queue_retry_after(app))


def _until_free(app: AppStatus) -> float:
    forecast = Forecast.of(app)
    return forecast.seconds_until_free() if forecast else 0.0
