"""What the tests of the job store run on: the real store, or the one in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from redis import Redis

from sdserve import keys
from sdserve.apps import AppState, ReplicaPresence
from sdserve.jobs import ClaimedJob, Job, JobStatus
from sdserve.operations import (
    Admission,
    Beat,
    Cancel,
    Claim,
    Ending,
    JobProgress,
    Operation,
    Pulse,
    Reap,
    Reaped,
    Submitted,
    ViewJob,
)
from sdserve.store import RedisJobStore
from sdserve.testing import InMemoryJobStore
from sdserve.usage import DayUsage, day_of, read_day
from tests.values import APP, JOB_TTL, LEASE, METRICS, finish, submit

RUN_OUT = timedelta(0)


@dataclass(frozen=True)
class World:
    """A job store, and short words for what is done to it."""

    store: RedisJobStore | InMemoryJobStore
    redis: Redis | None

    def run(self, operation: Operation[Any]) -> Any:
        return self.store.run(operation)

    def submit(self, **changes: Any) -> Submitted:
        return self.store.run(submit(**changes))

    def view(self, job_id: str) -> Job:
        return self.store.run(ViewJob(job_id=job_id))

    def can_submit(self, **changes: Any) -> bool:
        """Whether a submission is accepted; it is."""
        return self.submit(**changes).admission in (Admission.RUN_NOW, Admission.QUEUED)

    def claim(self, lease: timedelta = LEASE, app: str = APP) -> ClaimedJob:
        (job,) = self.store.run(Claim(app=app, replica="r1", count=1, lease=lease))
        return job

    def reap(self, app: str = APP) -> Reaped:
        return self.store.run(Reap(app=app, job_ttl=JOB_TTL))

    def cancel(self, job_id: str, ttl: timedelta = JOB_TTL) -> JobStatus | None:
        return self.store.run(Cancel(app=APP, job_id=job_id, job_ttl=ttl))

    def succeed(self, job: ClaimedJob, images: Sequence[bytes] = (b"png",), **more: Any) -> Ending:
        names = self.store.put_results(job.id, job.fence, images)
        seeds = list(range(len(names)))
        fields = {"result_keys": names, "image_seeds": seeds, "metrics": METRICS, **more}
        return self.store.run(finish(job.id, job.fence, JobStatus.SUCCEEDED, **fields))

    def beat(
        self,
        *jobs: ClaimedJob,
        replica: str = "r1",
        state: AppState = AppState.READY,
        lease: timedelta = LEASE,
    ) -> list[Pulse]:
        presence = ReplicaPresence(id=replica, state=state, phase="ready", pid=1, node="n")
        told = [
            JobProgress(job_id=job.id, fence=job.fence, step=3, phase="step 3 of 20")
            for job in jobs
        ]
        return self.store.run(Beat(app=APP, presence=presence, slots=1, lease=lease, jobs=told))

    def used(self, job_id: str) -> list[DayUsage]:
        """What was counted on the day on which this job ended."""
        ended = self.view(job_id).finished_at
        assert ended
        day = day_of(ended)
        if isinstance(self.store, InMemoryJobStore):
            return read_day(day, self.store.usage(day))
        assert self.redis is not None
        amounts: Any = self.redis.hgetall(f"{keys.USAGE}{day}")
        return read_day(day, {name.decode(): int(amount) for name, amount in amounts.items()})

    def images(self, names: Sequence[str]) -> list[bytes | None]:
        """The bytes behind these keys."""
        if isinstance(self.store, InMemoryJobStore):
            return self.store.results(names)
        assert self.redis is not None
        found: Any = self.redis.mget(list(names))
        return found
