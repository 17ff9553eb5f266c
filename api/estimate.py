"""How long a job has to wait, and what is happening to it, from what the store knows. Pure."""

import math
from datetime import UTC, datetime, timedelta

from sdserve.apps import AppState, AppStatus
from sdserve.jobs import Job, JobStatus

# A replica shows up a few seconds after the wish for it, unless nothing is free to place it on.
PLACEMENT_PATIENCE = timedelta(seconds=15)


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
    """Seconds until the result, from the app's measured averages; None when nothing is measured."""
    if app is None or job.status.is_final or app.seconds_per_job is None:
        return None
    if job.status is JobStatus.RUNNING:
        left = 1 - job.step / job.params.total_steps
        return round(app.seconds_per_job * left, 1)
    turns = math.ceil(((job.position or 0) + 1 + app.running) / max(1, len(app.replicas)))
    cold = app.state in (AppState.COLD, AppState.LOADING)
    return round(turns * app.seconds_per_job + ((app.load_seconds or 0) if cold else 0), 1)


def retry_after(job: Job, app: AppStatus | None) -> int:
    """Whole seconds until a look is worth it, 1..60."""
    return min(60, max(1, math.ceil(eta_seconds(job, app) or 1)))


def full_queue_retry_after(app: AppStatus) -> int:
    """Whole seconds until the whole queue may be done, 1..600."""
    seconds = app.queued * (app.seconds_per_job or 1) / max(1, len(app.replicas))
    return min(600, max(1, math.ceil(seconds)))
