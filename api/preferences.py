"""What a client asks of the answer rather than of the picture: Prefer, Accept, Idempotency-Key."""

import re
from dataclasses import dataclass

from api.problems import HttpProblemError
from sdserve.generation import ImageFormat

MAX_WAIT = 60.0  # seconds; longer holds die in proxies between us and the client
MAX_KEY_LENGTH = 200

_RAW = {
    "image/png": ImageFormat.PNG,
    "image/jpeg": ImageFormat.JPEG,
    "image/webp": ImageFormat.WEBP,
}


@dataclass(frozen=True, kw_only=True)
class Preference:
    """RFC 7240 `Prefer`: how long to hold the request. None: as long as the server thinks right."""

    wait: float | None  # seconds; 0 = answer at once
    applied: str | None  # for Preference-Applied


def preference(header: str | None) -> Preference:
    """Read `respond-async` and `wait=N`; other preferences are ignored, as the RFC asks.

    Both together mean: answer 202 unless the result is there within N seconds.

    Raises:
        HttpProblemError: 400, `wait` is not a number of seconds.
    """
    wait, applied = None, None
    for token in (header or "").split(","):
        name, _, value = token.strip().partition("=")
        if name.lower() == "respond-async" and wait is None:
            wait, applied = 0.0, "respond-async"
        elif name.lower() == "wait":
            if not re.fullmatch(r'"?\d{1,6}"?', value):
                message = f"Prefer: wait={value} is not a whole number of seconds."
                raise HttpProblemError(400, "bad_prefer", message)
            wait = min(float(value.strip('"')), MAX_WAIT)
            applied = f"wait={wait:.0f}"
    return Preference(wait=wait, applied=applied)


def raw_format(accept: str | None) -> ImageFormat | None:
    """The image format that `Accept` asks for as raw bytes; None: JSON."""
    for token in (accept or "").split(","):
        media_type = token.split(";")[0].strip().lower()
        if media_type in _RAW:
            return _RAW[media_type]
        if media_type in ("application/json", "*/*"):
            return None
    return None


def idempotency_key(header: str | None) -> str | None:
    """The Idempotency-Key header, checked.

    Raises:
        HttpProblemError: 400, empty or too long.
    """
    if header is None:
        return None
    if not 1 <= len(header.strip()) <= MAX_KEY_LENGTH:
        message = f"Idempotency-Key must have 1 to {MAX_KEY_LENGTH} characters."
        raise HttpProblemError(400, "bad_idempotency_key", message)
    return header.strip()
