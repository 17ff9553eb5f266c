"""When a call is tried again, and when it has failed. Pure: the caller brings the clock."""

import random
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
from pydantic import TypeAdapter, ValidationError

from sdserve.client.errors import ApiError, Fault

_FIRST_PAUSE = 0.25  # seconds
_LONGEST_PAUSE = 30.0  # seconds between two tries
_TEMPORARY = frozenset({429, 502, 503, 504})
# Ray Serve's proxy, not our app, answers these in plain text while an app is being (re)started.
_TEMPORARY_FROM_PROXY = frozenset({404, 500})
# 503s and 429s that no waiting heals: a broken app needs a redeploy.
_LASTING = frozenset({"app_broken"})


@dataclass
class Retry:
    """One call's tries.

    The patience counts from the end of the first failed try: the time before it went into waiting
    for an answer.
    """

    patience: timedelta
    _failing_since: float | None = None  # seconds of the caller's clock
    _pause: float = _FIRST_PAUSE

    def pause(self, now: float, wished: float | None) -> float | None:
        """Seconds until the next try after one that failed; None when the patience has run out.

        Args:
            now: seconds of any steady clock.
            wished: what the server's Retry-After said, in seconds.
        """
        if self._failing_since is None:
            self._failing_since = now
        left = self._failing_since + self.patience.total_seconds() - now
        if left <= 0:
            return None
        if wished is None:
            # Jitter, so that many clients of a restarted server do not come back as one.
            wished = random.uniform(self._pause / 2, self._pause)  # noqa: S311
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        return min(wished, left, _LONGEST_PAUSE)

    def succeeded(self) -> None:
        """The server answers again: a later failure is a new one."""
        self._failing_since, self._pause = None, _FIRST_PAUSE


def retry_after(response: httpx.Response) -> float | None:
    """Retry-After (RFC 9110 §10.2.3) in seconds.

    Its other form, a date, is left to the growing pauses.
    """
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdecimal() else None


def refusal(response: httpx.Response) -> ApiError:
    """The refusal in one sentence: a problem's own detail, else the first line of the answer."""
    status = response.status_code
    is_problem = response.headers.get("content-type", "").startswith("application/problem+json")
    payload = _payload(response)
    code = str(payload.get("type") or "").rpartition(":")[2]
    detail = str(payload.get("detail") or "")
    if not payload and (lines := response.text.strip().splitlines()):
        detail = f"The server answered {status}: {lines[0][:200]}"
    job_id = payload.get("job_id")
    is_temporary = status in _TEMPORARY or (status in _TEMPORARY_FROM_PROXY and not is_problem)
    return ApiError(
        status,
        str(payload.get("title") or response.reason_phrase),
        " ".join(detail.split()),
        problem=code,
        job_id=job_id if isinstance(job_id, str) else None,
        is_temporary=is_temporary and code not in _LASTING,
        faults=_faults(payload.get("errors")),
    )


def _payload(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of a refusal; {} when it is none."""
    try:
        payload = response.json()
    except ValueError:
        return {}
    return payload if isinstance(payload, dict) else {}


def _faults(errors: object) -> tuple[Fault, ...]:
    """The `errors` of a refusal; none of an answer that is not a server's of ours."""
    try:
        return _FAULTS.validate_python(errors or ())
    except ValidationError:
        return ()


_FAULTS: TypeAdapter[tuple[Fault, ...]] = TypeAdapter(tuple[Fault, ...])
