"""A replica's claim on jobs, from the lease to its end."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any, ClassVar

from sdserve import keys
from sdserve.apps import ReplicaPresence
from sdserve.generation import ComputeMetrics, GenerationParams
from sdserve.jobs import ClaimedJob, JobFailure, JobStatus
from sdserve.limits import ResultBudget
from sdserve.operations.operation import Argument, Operation
from sdserve.operations.wire import budget_of, milliseconds
from sdserve.pace import FADING, Measured
from sdserve.usage import Spent


@dataclass(frozen=True, kw_only=True)
class Claim(Operation[list[ClaimedJob]]):
    """Lease up to `count` queued jobs to a replica: the first of the queue, in its order."""

    script: ClassVar[str] = "claim"
    app: str
    replica: str
    count: int
    lease: timedelta
    size: tuple[int, int] | None = None  # none behind one of another width and height, in pixels

    @property
    def keys(self) -> list[str]:
        app = self.app
        return [
            keys.QUEUE + app, keys.LEASE + app, keys.CLOCK + app, keys.SHARES + app, keys.LOAD,
        ]  # fmt: skip

    @property
    def arguments(self) -> list[Argument]:
        lease = milliseconds(self.lease)
        size = "x".join(map(str, self.size)) if self.size else ""
        return [keys.JOB, self.replica, self.count, lease, keys.CHANNEL + self.app, size]

    def read(self, reply: Any) -> list[ClaimedJob]:
        return [
            ClaimedJob(
                id=job_id.decode(),
                fence=fence,
                params=GenerationParams.from_json(request),
                waited=waited / 1000,
            )
            for job_id, fence, request, waited in reply
        ]


@dataclass(frozen=True, kw_only=True)
class JobProgress:
    """How far a claimed job is, for one heartbeat."""

    job_id: str
    fence: int
    step: int
    phase: str


class Pulse(StrEnum):
    """What a heartbeat learns about one job."""

    OK = "ok"
    WATCHED = "watched"  # ok, and somebody wants to see previews
    CANCEL = "cancel"  # the user asked: stop within a step
    LOST = "lost"  # the claim is no longer ours: stop, nothing we write will count


@dataclass(frozen=True, kw_only=True)
class Beat(Operation[list[Pulse]]):
    """A replica's heartbeat: presence, leases, progress."""

    script: ClassVar[str] = "beat"
    app: str
    presence: ReplicaPresence
    lease: timedelta
    jobs: Sequence[JobProgress]

    @property
    def keys(self) -> list[str]:
        return [keys.REPLICAS + self.app, keys.LEASE + self.app, keys.APP + self.app]

    @property
    def arguments(self) -> list[Argument]:
        presence = json.dumps(asdict(self.presence))
        lease = milliseconds(self.lease)
        arguments: list[Argument] = [
            keys.JOB, lease, self.presence.id, presence, lease, keys.CHANNEL + self.app,
        ]  # fmt: skip
        for job in self.jobs:
            arguments += [job.job_id, job.fence, job.step, job.phase]
        return arguments

    def read(self, reply: Any) -> list[Pulse]:
        return [Pulse(word.decode()) for word in reply]


class Ending(StrEnum):
    """What became of a finish."""

    FINISHED = "finished"
    CANCELLED = "cancelled"  # the user cancelled first: the result was dropped
    LOST = "lost"  # a late writer: nothing changed
    UNSTORED = "unstored"  # an image is not in the store: nothing changed


@dataclass(frozen=True, kw_only=True)
class Finish(Operation[Ending]):
    """End a running job if the claim is still the caller's.

    Its images are stored with the same call (`finish` of the stores).
    """

    script: ClassVar[str] = "finish"
    app: str
    job_id: str
    fence: int
    status: JobStatus
    job_ttl: timedelta
    results: ResultBudget
    result_keys: Sequence[str] = ()
    image_seeds: Sequence[int] = ()
    metrics: ComputeMetrics | None = None
    error: JobFailure | None = None
    measured: Measured | None = None  # of a succeeded job: the app's pace learns from it
    spent: Spent = field(default_factory=Spent)

    @property
    def keys(self) -> list[str]:
        return [
            keys.JOB + self.job_id, keys.LEASE + self.app, keys.APP + self.app, keys.LOAD,
            keys.RESULTS, *self.result_keys,
        ]  # fmt: skip

    @property
    def meta(self) -> str:
        """What the store keeps of how the job ended, as JSON."""
        meta = {
            "results": list(self.result_keys),
            "seeds": list(self.image_seeds),
            "metrics": asdict(self.metrics) if self.metrics else None,
            "error": asdict(self.error) if self.error else None,
        }
        return json.dumps(meta)

    @property
    def arguments(self) -> list[Argument]:
        observations = self.measured.observations if self.measured else []
        return [
            self.job_id, self.fence, self.status, self.meta,
            int(self.job_ttl.total_seconds()), keys.CHANNEL + self.app, *budget_of(self.results),
            json.dumps(asdict(self.spent)), FADING,
            *(part for pair in observations for part in pair),
        ]  # fmt: skip

    def read(self, reply: Any) -> Ending:
        return Ending(reply.decode())


@dataclass(frozen=True, kw_only=True)
class Release(Operation[bool]):
    """Give a claimed job back at its old place. False: the claim was no longer ours."""

    script: ClassVar[str] = "release"
    app: str
    job_id: str
    fence: int
    job_ttl: timedelta  # for a job that ends here: it was cancelled, or its app is gone

    @property
    def keys(self) -> list[str]:
        app = self.app
        return [
            keys.JOB + self.job_id, keys.QUEUE + app, keys.LEASE + app, keys.WAKE + app,
            keys.APP + app, keys.LOAD,
        ]  # fmt: skip

    @property
    def arguments(self) -> list[Argument]:
        ttl = int(self.job_ttl.total_seconds())
        return [self.job_id, self.fence, keys.CHANNEL + self.app, ttl]

    def read(self, reply: Any) -> bool:
        return reply == 1


@dataclass(frozen=True, kw_only=True)
class Reaped:
    """What a reap did."""

    requeued: int
    ended: int


@dataclass(frozen=True, kw_only=True)
class Reap(Operation[Reaped]):
    """Take back the leases that have run out."""

    script: ClassVar[str] = "reap"
    app: str
    job_ttl: timedelta
    limit: int = 100

    @property
    def keys(self) -> list[str]:
        app = self.app
        return [keys.QUEUE + app, keys.LEASE + app, keys.WAKE + app, keys.APP + app, keys.LOAD]

    @property
    def arguments(self) -> list[Argument]:
        return [keys.JOB, self.limit, int(self.job_ttl.total_seconds()), keys.CHANNEL + self.app]

    def read(self, reply: Any) -> Reaped:
        return Reaped(requeued=reply[0], ended=reply[1])
