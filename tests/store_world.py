"""What the tests of the job store run on: the real store, or the one in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from redis import Redis

from sdserve.apps import AppState, LoadProgress, ReplicaPresence
from sdserve.jobs import ClaimedJob, Job, JobStatus
from sdserve.operations import (
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
        load: LoadProgress | None = None,
    ) -> list[Pulse]:
        presence = ReplicaPresence(
            id=replica, state=state, phase="ready", pid=1, node="n", load=load
        )
        told = [
            JobProgress(job_id=job.id, fence=job.fence, step=3, phase="step 3 of 20")
            for job in jobs
        ]
        return self.store.run(Beat(app=APP, presence=presence, lease=lease, jobs=told))

    def images(self, names: Sequence[str]) -> list[bytes | None]:
        """The bytes behind these keys."""
        if isinstance(self.store, InMemoryJobStore):
            return self.store.results(names)
        assert self.redis is not None
        found: Any = self.redis.mget(list(names))
        return found
