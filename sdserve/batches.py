"""A batch: many generations accepted as one, handed to their apps' queues a few at a time. Pure.

accepted ──first line handed over──▶ running ──last line ends──▶ completed
   └─────────────cancel─────────────▶ cancelling ──last job ends──▶ cancelled

Lines are numbered from 1 and stored in parts of `PART` lines. The lines of one app are handed over
in their order. What is left when a batch is cancelled, or when its app is gone, ends without a job.
"""

import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from pydantic import TypeAdapter

from sdserve.generation import ComputeMetrics, GenerationParams
from sdserve.jobs import JobFailure, JobStatus

PART = 200  # lines that are stored, compressed and read together
ROOM_BYTES = 300  # of a part as it is stored, for each line of room


class BatchState(StrEnum):
    """Where a batch stands. The last two are final."""

    ACCEPTED = "accepted"  # no line has become a job yet
    RUNNING = "running"
    CANCELLING = "cancelling"  # nothing new starts; jobs that run have not stopped yet
    COMPLETED = "completed"  # every line has ended, well or not
    CANCELLED = "cancelled"  # the same, after a cancel

    @property
    def is_final(self) -> bool:
        return self in (BatchState.COMPLETED, BatchState.CANCELLED)


class LineStatus(StrEnum):
    """Where a line stands: that of its job, or before it has one."""

    WAITING = "waiting"  # not in its app's queue yet
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True)
class BatchLine:
    """One accepted line: a generation with nothing left open, its seed included."""

    number: int  # place in the batch, from 1
    app: str
    custom_id: str | None = None  # the client's own name for it
    priority: int = 0
    webhook: str | None = None  # URL that is told of its job's end
    params: GenerationParams


@dataclass(frozen=True, kw_only=True)
class BatchPlace:
    """Where a job belongs: it takes its line's turn, and no line has two."""

    batch: str  # id
    line: int
    previous: int  # the app's line before it, as the caller knows it; 0: it is the first


@dataclass(frozen=True, kw_only=True)
class LineState:
    """Where a line stands; of one that has ended, how."""

    status: LineStatus
    error: JobFailure | None = None
    seeds: tuple[int, ...] = ()  # of each image
    result_keys: tuple[str, ...] = ()  # store keys of the images, which may have expired
    metrics: ComputeMetrics | None = None

    @staticmethod
    def read(record: str) -> "LineState":
        """From `status meta`, as end_line in common.lua writes it."""
        status, _, meta_text = record.partition(" ")
        meta: dict[str, Any] = json.loads(meta_text)
        error, metrics = meta.get("error"), meta.get("metrics")
        return LineState(
            status=LineStatus(status),
            error=JobFailure(**error) if error else None,
            seeds=tuple(meta.get("seeds") or ()),
            result_keys=tuple(meta.get("results") or ()),
            metrics=ComputeMetrics(**metrics) if metrics else None,
        )


@dataclass(frozen=True, kw_only=True)
class AppLines:
    """The lines of one app in a batch."""

    app: str
    lines: int
    fed: int = 0  # how many have become jobs
    last: int = 0  # number of the last one that did; 0: none
    rest: LineState | None = None  # how those without a job have ended, once none is to follow

    @property
    def is_open(self) -> bool:
        return self.rest is None and self.fed < self.lines


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch as it stands in the store."""

    id: str  # UUIDv7
    client: str  # who uploaded it; "" has no name
    lines: int
    apps: tuple[AppLines, ...]
    apps_of_part: tuple[frozenset[int], ...]  # places in `apps`, for each part
    created_at: datetime  # times are the Redis server's
    ended_at: datetime | None = None
    cancel_requested: bool = False
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    live: Mapping[str, str] = field(default_factory=dict[str, str])  # job id -> app: not ended
    packed: int = 0  # so many parts, from the first, have their results packed

    @property
    def ended(self) -> int:
        return self.succeeded + self.failed + self.cancelled

    @property
    def parts(self) -> int:
        return len(self.apps_of_part)

    @property
    def state(self) -> BatchState:
        if self.ended_at is not None:
            return BatchState.CANCELLED if self.cancel_requested else BatchState.COMPLETED
        if self.cancel_requested:
            return BatchState.CANCELLING
        has_begun = self.ended or any(app.fed for app in self.apps)
        return BatchState.RUNNING if has_begun else BatchState.ACCEPTED

    def live_of(self, app: str) -> int:
        return sum(1 for name in self.live.values() if name == app)

    def has_job(self, line: BatchLine) -> bool:
        return line.number <= self._lines_of(line.app).last

    def state_without_job(self, line: BatchLine) -> LineState:
        """Where a line stands that has become no job: it may still, or has ended so."""
        return self._lines_of(line.app).rest or LineState(status=LineStatus.WAITING)

    def _lines_of(self, app: str) -> AppLines:
        return next(lines for lines in self.apps if lines.app == app)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some lines in their order, and what has become of them."""

    lines: tuple[BatchLine, ...]
    records: Mapping[int, str]  # by line number, of those whose jobs have ended; `LineState.read`
    live: Mapping[int, JobStatus]  # of the whole batch: the jobs that have not ended

    def state(self, batch: Batch, line: BatchLine) -> LineState:
        """Where the line stands. `batch` is of before this part was read."""
        if record := self.records.get(line.number):
            return LineState.read(record)
        if (status := self.live.get(line.number)) is not None:
            return LineState(status=LineStatus(status.value))
        return batch.state_without_job(line)

    def is_settled(self, batch: Batch) -> bool:
        """Whether nothing here changes any more."""
        return all(self.state(batch, line).status in _FINAL for line in self.lines)


_FINAL = frozenset((LineStatus.SUCCEEDED, LineStatus.FAILED, LineStatus.CANCELLED))


def part_of(line: int) -> int:
    """The part, from 0, that holds a line."""
    return (line - 1) // PART


def parts_of(lines: Sequence[BatchLine]) -> Iterator[Sequence[BatchLine]]:
    for start in range(0, len(lines), PART):
        yield lines[start : start + PART]


def room_of(part: bytes) -> int:
    """The room that a stored part takes, in lines: long lines take that of several."""
    return max(PART, math.ceil(len(part) / ROOM_BYTES))


def line_job_id(batch_id: str, line: int) -> str:
    """The id of a line's job, always the same: a UUIDv7 (RFC 9562 §5.7) of the batch's time.

    Its random bits are a hash, so whoever does not know the batch's id cannot guess them.
    """
    digest = hashlib.sha256(f"{batch_id}:{line}".encode()).digest()
    random = int.from_bytes(digest[:10]) >> 4  # 76 bits; 74 are used
    milliseconds = UUID(batch_id).int >> 80
    version, variant = 0x7, 0x2
    high, low = random >> 62 & 0xFFF, random & (1 << 62) - 1
    return str(UUID(int=milliseconds << 80 | version << 76 | high << 64 | variant << 62 | low))


def dump_lines(lines: Sequence[BatchLine]) -> bytes:
    """A part's lines in full."""
    return _LINES.dump_json(list(lines))


def pack_lines(full: bytes) -> bytes:
    """A part's lines, of `dump_lines`, as they are stored."""
    return zlib.compress(full)


def unpack_lines(data: bytes) -> tuple[BatchLine, ...]:
    return tuple(_LINES.validate_json(zlib.decompress(data)))


def pack_records(records: Mapping[int, str]) -> bytes:
    """The results of a part that is settled, as they are kept: line number -> record."""
    return zlib.compress(json.dumps(records).encode())


def unpack_records(data: bytes) -> dict[int, str]:
    return {int(number): text for number, text in json.loads(zlib.decompress(data)).items()}


_LINES: TypeAdapter[list[BatchLine]] = TypeAdapter(list[BatchLine])
