"""What clients saw and which faults were made, in the order it became known: one JSON per line.

Times are Unix seconds of the one machine that a run is on.
"""

import hashlib
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One submission and its answer."""

    began: float
    at: float  # when the answer was there, or was given up
    app: str
    body: str  # digest of the request, its seed included
    key: str | None = None  # Idempotency-Key
    status: int | None = None  # HTTP's; None: no answer, so whether it was accepted is unknown
    problem: str | None = None  # `type` of a problem of ours
    job_id: str | None = None
    may_fail: tuple[str, ...] = ()  # error codes that this job asks for (a poison job, say)
    client: str | None = None  # API key
    event: Literal["asked"] = "asked"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A job as one look showed it."""

    began: float
    at: float
    job_id: str
    status: str
    attempt: int
    error: str | None = None  # code
    images: tuple[str, ...] | None = None  # digests of the bytes; None: not looked at
    client: str | None = None  # API key that looked; None: who may see all
    event: Literal["seen"] = "seen"


@dataclass(frozen=True, kw_only=True)
class CancelAsked:
    """A cancel and its answer: 200 it is cancelled, 202 it will be, 409 too late."""

    began: float
    at: float
    job_id: str
    status: int | None
    event: Literal["cancel"] = "cancel"


@dataclass(frozen=True, kw_only=True)
class Pried:
    """A try to get at the job of another client, and its answer."""

    began: float
    at: float
    job_id: str
    client: str  # API key that tried
    what: Literal["look", "image", "cancel"]
    status: int | None  # HTTP's
    event: Literal["pried"] = "pried"


@dataclass(frozen=True, kw_only=True)
class Struck:
    """A fault."""

    at: float
    kind: str
    app: str | None = None  # None: all apps
    is_over: bool = False  # the end of a lasting fault, which was noted at its begin too
    loses_replica: bool = False  # a running job may have lost its replica to it
    ends_jobs: str | None = None  # the error code with which jobs of `app` may end from now on
    event: Literal["struck"] = "struck"


Event = Annotated[Asked | Seen | CancelAsked | Pried | Struck, Field(discriminator="event")]
_EVENT: TypeAdapter[Asked | Seen | CancelAsked | Pried | Struck] = TypeAdapter(Event)


class History:
    """An append-only file of events. Safe to share between threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file = path.open("ab")

    def add(self, event: Asked | Seen | CancelAsked | Pried | Struck) -> None:
        line = _EVENT.dump_json(event, exclude_defaults=True)
        # The tag is a default too.
        line = line.replace(b"{", b'{"event":"%s",' % event.event.encode(), 1)
        with self._lock:
            self._file.write(line + b"\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()

    def events(self) -> list[Asked | Seen | CancelAsked | Pried | Struck]:
        return read_history(self.path)


def read_history(path: Path) -> list[Asked | Seen | CancelAsked | Pried | Struck]:
    return [_EVENT.validate_json(line) for line in path.read_bytes().splitlines()]


def digests(blobs: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(hashlib.sha256(blob).hexdigest()[:16] for blob in blobs)
