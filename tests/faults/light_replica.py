"""Replicas without a model: they speak the job store's operations as workers/ does, and can die.

A killed one leaves everything as it is, between any two of its calls, as after a kill -9.
"""

import hashlib
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

from sdserve.apps import AppState, ReplicaPresence
from sdserve.errors import StoreUnavailableError
from sdserve.generation import GenerationParams
from sdserve.jobs import ClaimedJob, JobStatus
from sdserve.operations import Beat, Claim, JobProgress, Pulse, Reap
from sdserve.store import RedisJobStore, connect
from sdserve.usage import Spent
from tests.faults.history import History, Struck
from tests.values import JOB_TTL, METRICS, finish, names_of

Value = TypeVar("Value")

LEASE = timedelta(seconds=1)
STEPS, STEP = 4, 0.005  # seconds
RETRY = 0.05  # seconds
REAP_INTERVAL = 0.2  # seconds

# What a prompt makes a light replica do.
POISON = "poison"  # it dies
STALL = "stall"  # at the first attempt it freezes for longer than its lease, then insists


class KilledError(Exception):
    """This replica is dead from here on."""


class LightReplica(threading.Thread):
    """Claims, beats, draws and finishes, one job at a time, until it is killed or stopped."""

    def __init__(self, name: str, app: str, url: str, history: History) -> None:
        super().__init__(name=name, daemon=True)
        self.app = app
        self._redis = connect(url)
        self._store = RedisJobStore(self._redis)
        self._history = history
        self._killed = threading.Event()
        self._stopped = threading.Event()
        self._presence = ReplicaPresence(
            id=name, state=AppState.READY, phase="ready", pid=0, node="here"
        )

    def kill(self) -> None:
        self._killed.set()

    def stop(self) -> None:
        """Finish the job at hand, then end."""
        self._stopped.set()

    def run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._serve()
        except KilledError:
            pass
        finally:
            self._redis.close()

    def _serve(self) -> None:
        claim = Claim(app=self.app, replica=self.name, count=1, lease=LEASE)
        try:
            self._beat([])
            jobs = self._call(lambda: self._store.run(claim))
            if not jobs:
                self._call(lambda: self._store.wait_for_work(self.app, 0.2))
        except StoreUnavailableError:
            self._killed.wait(RETRY)
            return
        for job in jobs:
            self._draw(job)

    def _draw(self, job: ClaimedJob) -> None:
        freezes = job.params.prompt == STALL and job.fence == 1
        for step in range(STEPS):
            time.sleep(STEP)
            if job.params.prompt == POISON:
                raise KilledError
            if freezes and step == 1:
                self._freeze()
            progress = JobProgress(job_id=job.id, fence=job.fence, step=step, phase=f"step {step}")
            try:
                (pulse,) = self._beat([progress])
            except StoreUnavailableError:
                continue  # that is what the lease is for
            if pulse is Pulse.CANCEL:
                self._finish(job, JobStatus.CANCELLED, [], steps=step + 1)
                return
            if pulse is Pulse.LOST and not freezes:
                return
        self._finish(job, JobStatus.SUCCEEDED, [draw(job.params)], steps=STEPS)

    def _finish(
        self, job: ClaimedJob, status: JobStatus, images: list[bytes], *, steps: int
    ) -> None:
        # Each attempt has a bill of its own: that of a zombie must not be counted.
        spent = Spent(steps=steps, gpu_ms=5 * steps, cpu_ms=job.fence, energy_mj=10**job.fence)
        operation = finish(
            job.id, job.fence, status, app=self.app, metrics=METRICS,
            result_keys=names_of(job, images), image_seeds=[job.params.seed] * len(images),
            spent=spent,
        )  # fmt: skip
        self._persist(lambda: self._store.finish(operation, images))

    def _freeze(self) -> None:
        frozen = Struck(at=time.time(), kind="freeze replica", app=self.app, loses_replica=True)
        self._history.add(frozen)
        self._killed.wait(1.5 * LEASE.total_seconds())

    def _beat(self, jobs: list[JobProgress]) -> list[Pulse]:
        beat = Beat(app=self.app, presence=self._presence, lease=LEASE, jobs=jobs)
        return self._call(lambda: self._store.run(beat))

    def _call(self, call: Callable[[], Value]) -> Value:
        """Between any two calls a kill may come."""
        if self._killed.is_set():
            raise KilledError
        value = call()
        if self._killed.is_set():
            raise KilledError
        return value

    def _persist(self, call: Callable[[], Value]) -> Value:
        while True:
            try:
                return self._call(call)
            except StoreUnavailableError:
                self._killed.wait(RETRY)


class Reaper(threading.Thread):
    """What every replica and ingress does beside its work: take back leases that ran out."""

    def __init__(self, apps: tuple[str, ...], url: str) -> None:
        super().__init__(name="reaper", daemon=True)
        self._apps = apps
        self._redis = connect(url)
        self._store = RedisJobStore(self._redis)
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        while not self._stopped.wait(REAP_INTERVAL):
            for app in self._apps:
                with suppress(StoreUnavailableError):  # again in a moment
                    self._store.run(Reap(app=app, job_ttl=JOB_TTL))
        self._redis.close()


def draw(params: GenerationParams) -> bytes:
    """A picture, as it were: the same for the same parameters."""
    return hashlib.sha256(params.to_json().encode()).digest() * 64
