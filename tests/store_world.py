"""What the tests of the job store run on: the real store, or the one in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from redis import Redis

from sdserve import keys
from sdserve.apps import AppState, LoadProgress, ReplicaPresence
from sdserve.jobs import ClaimedJob, Job, JobStatus, Preview
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
    Release,
    ShowPreview,
    Submitted,
    ViewJob,
    ViewPreview,
    Watch,
)
from sdserve.outbox import (
    BeginHook,
    HookOutcome,
    HookState,
    HookTry,
    HookView,
    SettleHook,
    TakeHooks,
    ViewHooks,
)
from sdserve.store import RedisJobStore
from sdserve.testing import InMemoryJobStore
from sdserve.usage import DayUsage, day_of, read_day
from tests.values import APP, JOB_TTL, LEASE, METRICS, finish, names_of, submit

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
        fields = {"image_seeds": list(range(len(images))), "metrics": METRICS, **more}
        operation = finish(
            job.id, job.fence, JobStatus.SUCCEEDED, result_keys=names_of(job, images), **fields
        )
        return self.store.finish(operation, images)

    def beat(
        self,
        *jobs: ClaimedJob,
        replica: str = "r1",
        state: AppState = AppState.READY,
        lease: timedelta = LEASE,
        step: int = 3,
        phase: str = "ready",
        load: LoadProgress | None = None,
    ) -> list[Pulse]:
        presence = ReplicaPresence(id=replica, state=state, phase=phase, pid=1, node="n", load=load)
        told = [
            JobProgress(job_id=job.id, fence=job.fence, step=step, phase=f"step {step} of 20")
            for job in jobs
        ]
        return self.store.run(Beat(app=APP, presence=presence, lease=lease, jobs=told))

    def take(self, patience: timedelta = LEASE) -> list[str]:
        """Due webhook events."""
        return self.store.run(TakeHooks(limit=100, patience=patience))

    def begin(self, event: str, busy: timedelta = LEASE) -> HookTry | None:
        return self.store.run(BeginHook(event=event, busy=busy))

    def settle(self, of: HookTry, outcome: HookOutcome, **more: Any) -> HookState:
        return self.store.run(SettleHook(event=of.event, number=of.number, outcome=outcome, **more))

    def hooks(self, *, dead: bool = False) -> list[HookView]:
        return self.store.run(ViewHooks(dead=dead, limit=100))

    def show_preview(self, job: ClaimedJob, preview: Preview, ttl: timedelta = LEASE) -> bool:
        operation = ShowPreview(app=APP, job_id=job.id, fence=job.fence, preview=preview, ttl=ttl)
        return self.store.run(operation)

    def preview(self, job_id: str) -> Preview | None:
        return self.store.run(ViewPreview(job_id=job_id))

    def watch(self, job_id: str, span: timedelta = LEASE) -> JobStatus | None:
        return self.store.run(Watch(job_id=job_id, span=span))

    def release(self, job: ClaimedJob) -> bool:
        return self.store.run(Release(app=APP, job_id=job.id, fence=job.fence, job_ttl=JOB_TTL))

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
