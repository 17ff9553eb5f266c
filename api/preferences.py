"""What a client asks of the answer rather than of the picture: Prefer, Accept, Idempotency-Key."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Query

from api.problems import HttpProblemError
from sdserve.generation import ImageFormat

MAX_WAIT = 60.0  # seconds; longer holds die in proxies between us and the client
MAX_KEY_LENGTH = 200
MAX_PREFER_LENGTH = 1000  # characters of all lines; taking longer ones apart takes long

LongPoll = Annotated[
    float, Query(ge=0, le=MAX_WAIT, description="seconds to wait for the end (long poll)")
]

_RAW = {
    "image/png": ImageFormat.PNG,
    "image/jpeg": ImageFormat.JPEG,
    "image/webp": ImageFormat.WEBP,
}


# RFC 7240 §2: token [= word] *( ; [parameter] ), and RFC 9110 §5.6: tokens and quoted strings.
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_PREFERENCE = re.compile(rf"[ \t]*({_WORD})(?:[ \t]*=[ \t]*({_WORD}|{_QUOTED}))?[ \t]*(?:;|$)")
_ELEMENT = re.compile(rf"(?:{_QUOTED}|[^,\"]|\")+")


@dataclass(frozen=True, kw_only=True)
class Preference:
    """RFC 7240 `Prefer`: how long to hold the request."""

    wait: float | None = None  # seconds, §4.3; at most MAX_WAIT
    is_async: bool = False  # respond-async, §4.1: a 202 rather than a long wait

    @property
    def hold(self) -> float | None:
        """Seconds; 0 = answer at once, None = as long as the server thinks right."""
        return 0.0 if self.wait is None and self.is_async else self.wait

    def applied(self, *, is_async: bool) -> str | None:
        """The Preference-Applied header (§3) of an answer that is, or is not, a 202."""
        kept = ["respond-async"] if self.is_async and is_async else []
        kept += [] if self.wait is None else [f"wait={self.wait:.0f}"]
        return ", ".join(kept) or None


def preference(headers: Sequence[str]) -> Preference:
    """Read the `Prefer` headers of a request, of which there may be several.

    What is not understood is ignored, a `wait` that is no number of seconds too: a preference
    never makes a request fail (§2). Of a preference that is there twice the first counts.
    """
    found = dict[str, str]()
    given = ",".join(headers)
    for element in _ELEMENT.findall(given) if len(given) <= MAX_PREFER_LENGTH else ():
        match = _PREFERENCE.match(element)
        if match:
            value = match[2] or ""
            text = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
            found.setdefault(match[1].lower(), text)
    wait = found.get("wait", "")
    is_number = re.fullmatch("[0-9]+", wait)
    return Preference(
        wait=min(float(wait), MAX_WAIT) if is_number else None,
        is_async=found.get("respond-async") == "",
    )


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
