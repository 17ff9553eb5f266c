"""A job and its lifecycle. Pure: no clock, no network, no Redis.

queued ──claim──▶ running ──finish──▶ succeeded | failed | cancelled
   ▲                 │
   └──lease lost─────┘      (until max_attempts: then failed, "worker_lost")
"""

import os
import time
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sdserve.generation import ComputeMetrics, GenerationParams
from sdserve.usage import Usage

# A job's priority: of one client's jobs the higher go first; it moves none before another client's.
LOWEST_PRIORITY, HIGHEST_PRIORITY = -10, 10


class JobStatus(StrEnum):
    """Where a job stands. The last three are final: no field of the job changes after them."""

    QUEUED = "queued"  # accepted, in the app's queue
    RUNNING = "running"  # a replica holds its lease
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class JobFailure:
    """Why a job failed: a stable code and a sentence."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """One accepted generation as it stands in the store."""

    id: str  # UUIDv7
    app: str
    model: str  # the checkpoint's name
    status: JobStatus
    params: GenerationParams
    created_at: datetime  # all times are the Redis server's
    started_at: datetime | None = None  # of the last attempt
    finished_at: datetime | None = None
    phase: str | None = None  # what the replica does right now, in words
    step: int = 0  # denoising steps done, of params.total_steps
    position: int | None = None  # 0 = next; None when not queued
    attempt: int = 0  # claims so far; the fence of the current one
    cancel_requested: bool = False
    version: int = 0  # counts the changes that a viewer sees; never goes back
    owner: str | None = None  # replica id
    client: str = ""  # who submitted it; "" has no name
    result_keys: tuple[str, ...] = ()  # one store key per image
    image_seeds: tuple[int, ...] = ()
    metrics: ComputeMetrics | None = None  # of a succeeded job
    error: JobFailure | None = None
    batch: str | None = None  # id of the batch that it is a line of
    line: int | None = None  # its number there, from 1
    usage: Usage | None = None  # its bill, once it has ended


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A running job's picture as it stands after a step."""

    step: int  # of the job's total steps
    number: int  # which of the job's pictures, from 0
    image: bytes  # WebP


@dataclass(frozen=True, kw_only=True)
class ClaimedJob:
    """A job under lease: what a replica needs to run it. `fence` proves the claim to `finish`."""

    id: str
    fence: int
    params: GenerationParams
    waited: float  # seconds from acceptance to this claim, by the server's clock


def new_job_id() -> str:
    """A UUIDv7 (RFC 9562 §5.7): Unix milliseconds, 12 bits of a fraction of one, 62 random bits.

    The fraction (§6.2, method 3) keeps the order of jobs that one process makes in a millisecond:
    among jobs with equal rights the smaller id runs first.
    """
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    fraction = (rest << 12) // 1_000_000
    random = int.from_bytes(os.urandom(8)) >> 2
    version, variant = 0x7, 0x2
    value = (milliseconds << 16 | version << 12 | fraction) << 64 | variant << 62 | random
    return str(UUID(int=value))


def is_job_id(text: str) -> bool:
    """Whether `text` could be an id of ours, so that nothing else becomes part of a Redis key."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
