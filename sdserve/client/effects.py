"""What a call asks of the world. A program yields these; a driver, sync or async, performs them.

So the logic of every call exists once, does no I/O, and can be tested without a network.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, TypeVar

import httpx
from httpx_sse import ServerSentEvent

T = TypeVar("T")

_CONNECT = 30.0  # seconds to connect, or to send a part of a body


class Reading(Enum):
    """How the body of a successful answer is read."""

    WHOLE = "whole"  # at once
    BYTES = "bytes"  # in parts, one a `NextPart`
    EVENTS = "events"  # as server-sent events, one a `NextPart`


@dataclass(frozen=True, kw_only=True)
class Request:
    """Send it. Reply: `httpx.Response`, or `Lost`. A refusal's body is always read whole."""

    method: str
    path: str  # from the server's root, quoted
    params: dict[str, str] = field(default_factory=dict[str, str])
    headers: dict[str, str] = field(default_factory=dict[str, str])
    content: bytes | None = field(default=None, repr=False)
    silence: float  # seconds without a byte of the answer after which it counts as lost
    reading: Reading = Reading.WHOLE

    def build(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        return http.build_request(
            self.method,
            self.path,
            params=self.params,
            headers=self.headers,
            content=self.content,
            timeout=httpx.Timeout(_CONNECT, read=self.silence),
        )


@dataclass(frozen=True, kw_only=True)
class NextPart:
    """Read on in the last answer. Reply: bytes or event, None at its end, or `Lost`."""


@dataclass(frozen=True, kw_only=True)
class Sleep:
    """Wait. Reply: None."""

    seconds: float


@dataclass(frozen=True, kw_only=True)
class Perform(Generic[T]):
    """Do blocking work on a disk. Reply: what it returns; what it raises is raised."""

    work: Callable[[], T]


@dataclass(frozen=True, kw_only=True)
class Emit(Generic[T]):
    """Hand `value` to whoever iterates over the call. Reply: None."""

    value: T


@dataclass(frozen=True, kw_only=True)
class Lost:
    """The connection failed before the (whole) answer was there."""

    error: httpx.TransportError

    @property
    def reason(self) -> str:
        return str(self.error) or type(self.error).__name__


Effect = Request | NextPart | Sleep | Perform[Any]
Part = bytes | ServerSentEvent | None
Program = Generator[Effect, Any, T]  # a call with one result
Series = Generator[Effect | Emit[T], Any, None]  # a call with many
