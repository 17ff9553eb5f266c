"""Replicas as processes: killed, frozen, hung. What they leave behind is right."""

import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from sdserve import keys
from sdserve.jobs import Job, JobStatus
from sdserve.operations import ViewJob
from sdserve.store import RedisJobStore
from tests.replica_process import (
    HANG,
    LOSE_DEVICE,
    POISON,
    STEPS,
    start_replica,
)
from tests.values import APP, params, replica_settings, spec, submit
from tests.waiting import until
from workers.puller import CPU_PATIENCE

pytestmark = pytest.mark.integration


class Fleet:
    """Replica processes of one app."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self._folder = folder
        self._settings = replica_settings(
            redis_url,
            lease=timedelta(seconds=1),
            step_timeout=timedelta(seconds=5) / CPU_PATIENCE,
        )
        self.processes: list[ForkServerProcess] = []
        self.lost = 0

    def start(self, *, passes: bool = True) -> Path:
        """Start one. Returns the file without which its jobs do not end."""
        gate = self._folder / f"gate-{len(self.processes) + self.lost}"
        if passes:
            gate.touch()
        self.processes.append(start_replica(spec(), self._settings, gate))
        return gate

    def tend(self) -> None:
        """As Serve does: another one for each that has ended."""
        for process in list(self.processes):
            if process.exitcode is not None:
                self.processes.remove(process)
                self.lost += 1
                self.start()

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


@pytest.fixture
def store(redis: Redis) -> RedisJobStore:
    made = RedisJobStore(redis)
    made.register_app(spec())
    return made


@pytest.fixture
def fleet(redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    ours = Fleet(redis_url, tmp_path)
    yield ours
    ours.stop()


def accept(store: RedisJobStore, prompt: str = "a red circle", **changes: Any) -> str:
    wanted = params(prompt=prompt, num_inference_steps=STEPS, **changes)
    return store.run(submit(params=wanted)).job_id


def view(store: RedisJobStore, job_id: str) -> Job:
    return store.run(ViewJob(job_id=job_id))


def pids(store: RedisJobStore) -> dict[str, int]:
    return {replica.id: replica.pid for replica in store.app_status(APP).replicas}


def counters(redis: Redis) -> list[bytes | None]:
    found: Any = redis.hmget(keys.APP + APP, "succeeded", "failed", "cancelled", "load_failures")
    return found


@pytest.mark.parametrize("other", ["is still drawing", "is done"])
def test_a_zombie_changes_nothing(
    store: RedisJobStore, redis: Redis, fleet: Fleet, other: str
) -> None:
    """Frozen in its last step for longer than its lease, it wakes up and insists on its result."""
    zombie_gate = fleet.start(passes=False)
    job_id = accept(store)
    until(lambda: view(store, job_id).step == STEPS - 1)
    claimed = view(store, job_id)
    zombie = pids(store)[str(claimed.owner)]
    os.kill(zombie, signal.SIGSTOP)

    gate = fleet.start(passes=other == "is done")
    until(lambda: view(store, job_id).attempt == 2)
    until(lambda: zombie not in pids(store).values())
    if other == "is done":
        until(lambda: view(store, job_id).status is JobStatus.SUCCEEDED)
    else:
        until(lambda: view(store, job_id).step == STEPS - 1)
    before = view(store, job_id)
    assert before.owner != claimed.owner

    if other == "is done":
        fleet.processes[-1].kill()
    zombie_gate.touch()
    os.kill(zombie, signal.SIGCONT)
    until(lambda: zombie in pids(store).values())  # it is alive again, and says so
    # Nobody else is free for new work, and it takes none before it has tried to finish the old.
    second = accept(store)
    until(lambda: view(store, second).status is JobStatus.SUCCEEDED)
    assert view(store, job_id) == before
    gate.touch()
    until(lambda: view(store, job_id).status is JobStatus.SUCCEEDED)
    done = view(store, job_id)
    assert done.attempt == 2
    assert done.metrics is not None
    assert done.metrics.replica_id != claimed.owner
    assert all(redis.exists(key) for key in done.result_keys)
    assert not redis.exists(keys.result(job_id, 1, 0))
    assert counters(redis) == [b"2", None, None, None]
    assert redis.zcard(keys.LEASE + APP) == 0


@pytest.mark.parametrize(
    ("kind", "replicas"), [(POISON, 1), (POISON, 2), (HANG, 2), (LOSE_DEVICE, 2)]
)
def test_a_job_that_takes_its_replica_with_it_ends_and_harms_nobody(
    store: RedisJobStore, redis: Redis, fleet: Fleet, kind: str, replicas: int
) -> None:
    # Large pictures, whose encoding takes longer than the next job's way to its first step.
    before = [accept(store, width=2048, height=2048) for _ in range(3)]
    bad = accept(store, kind)
    after = [accept(store, width=2048, height=2048) for _ in range(3)]
    for _ in range(replicas):
        fleet.start()

    def all_ended() -> bool:
        fleet.tend()
        return all(view(store, job_id).status.is_final for job_id in (*before, bad, *after))

    until(all_ended)
    until(lambda: fleet.tend() or fleet.lost == 3)
    failed = view(store, bad)
    assert (failed.status, failed.attempt) == (JobStatus.FAILED, 3)
    assert failed.error is not None
    assert failed.error.code == "worker_lost"
    others = [view(store, job_id) for job_id in (*before, *after)]
    assert {job.status for job in others} == {JobStatus.SUCCEEDED}
    # The first time, nobody knows yet that it should run alone: whose picture is being stored
    # beside it loses an attempt, where the replica gets no time for last words.
    assert max(job.attempt for job in others) <= (2 if kind == POISON else 1)
    assert counters(redis) == [b"6", b"1", None, None]
