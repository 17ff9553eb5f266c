"""What a replica keeps to, whatever its engine does: leases, stops, errors, hangs."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
from redis import Redis

from sdserve import keys
from sdserve.apps import AppState
from sdserve.checkpoints import inspect_checkpoint
from sdserve.errors import OutOfMemoryError
from sdserve.generation import GenerationParams
from sdserve.jobs import Job, JobStatus
from sdserve.operations import Reap, ViewJob
from sdserve.store import RedisJobStore
from tests.fake_engine import OnStep, loads
from tests.integration.test_puller import DEMO
from tests.values import APP, JOB_TTL, params, replica_settings, spec, submit
from tests.waiting import LIMIT, until
from workers import finisher
from workers.puller import CPU_PATIENCE, Puller

pytestmark = pytest.mark.integration

LEASE = timedelta(seconds=1)
SECOND = timedelta(seconds=1)


class Gate:
    """Where a thread of a replica is held until the test lets it pass."""

    def __init__(self) -> None:
        self._reached, self._open = threading.Event(), threading.Event()

    def hold(self, *_: object, **__: object) -> None:
        self._reached.set()
        assert self._open.wait(LIMIT)

    def reached(self) -> None:
        assert self._reached.wait(LIMIT)

    def open(self) -> None:
        self._open.set()


class Replicas:
    """Pullers in this process, with engines that do what the test says."""

    def __init__(self, redis_url: str, store: RedisJobStore) -> None:
        self._redis_url = redis_url
        self._store = store
        self._pullers: list[Puller] = []
        self.deaths: list[int] = []  # exit codes

    def start(
        self,
        on_step: OnStep = lambda _: None,
        *,
        load: Callable[..., Any] | None = None,
        slots: int = 1,
        **settings: Any,
    ) -> Puller:
        app = spec(checkpoint=inspect_checkpoint(DEMO)[0], slots=slots)
        puller = Puller(
            app,
            replica_settings(self._redis_url, **{"lease": LEASE, **settings}),
            born=time.monotonic(),
            load=load or loads(on_step),
            end_process=self.deaths.append,
        )
        self._pullers.append(puller)
        return puller

    def stop(self) -> None:
        for puller in self._pullers:
            puller.stop(timedelta(0))


@pytest.fixture
def store(redis: Redis) -> RedisJobStore:
    made = RedisJobStore(redis)
    made.register_app(spec(checkpoint=inspect_checkpoint(DEMO)[0]))
    return made


@pytest.fixture
def gate() -> Iterator[Gate]:
    one = Gate()
    yield one
    one.open()


@pytest.fixture
def replicas(redis_url: str, store: RedisJobStore, gate: Gate) -> Iterator[Replicas]:
    ours = Replicas(redis_url, store)
    yield ours
    gate.open()
    ours.stop()


def accept(store: RedisJobStore, **changes: Any) -> str:
    return store.run(submit(params=params(num_inference_steps=3, **changes))).job_id


def view(store: RedisJobStore, job_id: str) -> Job:
    return store.run(ViewJob(job_id=job_id))


def ended(store: RedisJobStore, job_id: str) -> Job:
    until(lambda: view(store, job_id).status.is_final)
    return view(store, job_id)


def only_once(misbehave: OnStep) -> OnStep:
    """Misbehave in the first step of all, behave in every other."""
    first = iter([True])

    def on_step(of: GenerationParams) -> None:
        if next(first, False):
            misbehave(of)

    return on_step


# --- leases ----------------------------------------------------------------------------------


def test_a_step_much_longer_than_the_lease_keeps_it_and_tells_the_truth(
    store: RedisJobStore, redis: Redis, replicas: Replicas, gate: Gate
) -> None:
    steps = iter(range(3))
    replicas.start(lambda of: gate.hold() if next(steps) == 1 else None)
    job_id = accept(store)
    gate.reached()  # in the second step
    begin = store.app_status(APP)
    assert begin.running == 1

    def lease_end() -> float:
        end: Any = redis.zscore(keys.LEASE + APP, job_id)
        return end / 1000

    first = lease_end()
    while lease_end() < first + 4 * LEASE.total_seconds():
        reaped = store.run(Reap(app=APP, job_ttl=JOB_TTL))  # as every ingress does
        assert (reaped.requeued, reaped.ended) == (0, 0)
        time.sleep(0.1)
    held = view(store, job_id)
    assert (held.status, held.attempt, held.step) == (JobStatus.RUNNING, 1, 1)
    assert held.phase == "step 1 of 3"
    gate.open()
    done = ended(store, job_id)
    assert (done.status, done.attempt) == (JobStatus.SUCCEEDED, 1)


def test_a_replica_that_claims_again_what_it_lost_keeps_the_new_claim(
    store: RedisJobStore, redis: Redis, replicas: Replicas, gate: Gate
) -> None:
    """Its finisher still holds the dead claim when its engine runs the live one."""
    second = Gate()
    steps = iter(range(6))
    with pytest.MonkeyPatch.context() as patch:
        from workers import images

        real = images.encode_image

        def slow_once(*arguments: Any, **options: Any) -> Any:
            patch.setattr(images, "encode_image", real)
            gate.hold()
            return real(*arguments, **options)

        patch.setattr(images, "encode_image", slow_once)
        replicas.start(lambda of: second.hold() if next(steps) == 4 else None)
        job_id = accept(store)
        gate.reached()  # drawn; its image is being encoded
        redis.zadd(keys.LEASE + APP, {job_id: 1})  # as if this process had slept for long
        store.run(Reap(app=APP, job_ttl=JOB_TTL))
        second.reached()  # the same replica draws it again
        gate.open()
        before: Any = redis.zscore(keys.LEASE + APP, job_id)
        until(lambda: redis.zscore(keys.LEASE + APP, job_id) > before + 2000)  # still renewed
        second.open()
    done = ended(store, job_id)
    assert (done.status, done.attempt) == (JobStatus.SUCCEEDED, 2)
    assert all(f":{done.attempt}:" in key for key in done.result_keys)


# --- stops -----------------------------------------------------------------------------------


def test_a_running_job_ends_within_the_grace_time_and_no_other_is_claimed(
    store: RedisJobStore, replicas: Replicas, gate: Gate
) -> None:
    puller = replicas.start(gate.hold)
    running, waiting = accept(store), accept(store)
    gate.reached()
    stopper = threading.Thread(target=puller.stop)
    stopper.start()
    until(lambda: puller.is_stopping)
    gate.open()
    stopper.join(LIMIT)
    assert view(store, running).status is JobStatus.SUCCEEDED
    assert view(store, waiting).status is JobStatus.QUEUED
    assert store.app_status(APP).replicas == ()


def test_a_job_that_outlasts_the_grace_time_runs_elsewhere_and_is_no_loss(
    store: RedisJobStore, redis: Redis, replicas: Replicas, gate: Gate
) -> None:
    job_id = accept(store)
    for handed_back in range(1, 5):  # more often than a job may be lost
        held = Gate()
        puller = replicas.start(held.hold)
        held.reached()
        puller.stop(timedelta(0))
        job = view(store, job_id)
        assert (job.status, job.attempt) == (JobStatus.QUEUED, handed_back)
        assert store.app_status(APP).replicas == ()
        held.open()  # the late step of a replica that has left changes nothing
    replicas.start()
    done = ended(store, job_id)
    assert (done.status, done.attempt) == (JobStatus.SUCCEEDED, 5)
    counters: Any = redis.hmget(keys.APP + APP, "succeeded", "failed")
    assert counters == [b"1", None]
    assert replicas.deaths == []


def test_a_stop_while_loading_waits_for_nothing(
    store: RedisJobStore, replicas: Replicas, gate: Gate
) -> None:
    job_id = accept(store)
    loaded = threading.Event()

    def load(*_: object, **__: object) -> None:
        gate.hold()
        loaded.set()

    puller = replicas.start(load=load)
    gate.reached()
    puller.stop(timedelta(hours=1))
    assert not loaded.is_set()
    assert store.app_status(APP).replicas == ()
    assert store.load_failures(APP) == 0
    assert view(store, job_id).status is JobStatus.QUEUED


def test_an_idle_replica_that_is_told_to_stop_claims_nothing_more(
    store: RedisJobStore, replicas: Replicas
) -> None:
    puller = replicas.start()
    until(lambda: store.app_status(APP).state is AppState.READY)
    puller.stop()
    job_id = accept(store)
    assert store.app_status(APP).replicas == ()
    assert view(store, job_id).status is JobStatus.QUEUED
    replicas.start()
    assert ended(store, job_id).status is JobStatus.SUCCEEDED


def test_a_stop_while_a_picture_is_being_stored_waits_for_it(
    store: RedisJobStore, replicas: Replicas, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = finisher.patiently

    def held(call: Callable[[], Any]) -> Any:
        gate.hold()
        return real(call)

    monkeypatch.setattr(finisher, "patiently", held)
    puller = replicas.start()
    job_id = accept(store)
    gate.reached()
    stopper = threading.Thread(target=puller.stop, args=(timedelta(0),))
    stopper.start()
    until(lambda: puller.is_stopping)
    gate.open()
    stopper.join(LIMIT)
    done = view(store, job_id)
    assert (done.status, done.attempt) == (JobStatus.SUCCEEDED, 1)


# --- errors ----------------------------------------------------------------------------------


def test_out_of_memory_ends_that_job_with_numbers_and_the_replica_serves_on(
    store: RedisJobStore, replicas: Replicas
) -> None:
    def on_step(of: GenerationParams) -> None:
        if of.width == 256:
            raise OutOfMemoryError("The device has too little memory for 256x256: try 192x192.")

    replicas.start(on_step)
    large, small = accept(store, width=256, height=256), accept(store)
    failed = ended(store, large)
    assert (failed.status, failed.attempt) == (JobStatus.FAILED, 1)
    assert failed.error is not None
    assert failed.error.code == "out_of_memory"
    assert "try 192x192" in failed.error.message
    assert ended(store, small).status is JobStatus.SUCCEEDED
    assert replicas.deaths == []


def test_an_error_of_one_job_fails_it_at_once(store: RedisJobStore, replicas: Replicas) -> None:
    def broken(_: GenerationParams) -> None:
        raise ValueError("a defect")

    replicas.start(only_once(broken))
    first, second = accept(store), accept(store)
    failed = ended(store, first)
    assert (failed.status, failed.attempt) == (JobStatus.FAILED, 1)
    assert failed.error is not None
    assert failed.error.code == "internal_error"
    assert ended(store, second).status is JobStatus.SUCCEEDED
    assert replicas.deaths == []


def lose_device(_: GenerationParams) -> None:
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def test_a_lost_device_ends_the_replica_and_its_jobs_run_elsewhere(
    store: RedisJobStore, replicas: Replicas
) -> None:
    # With the default lease of 15 s, and no other replica until the jobs are back.
    many = params(num_inference_steps=50)
    ids = [store.run(submit(params=many)).job_id for _ in range(3)]

    def lose_device_when_two_run(of: GenerationParams) -> None:
        if view(store, ids[1]).status is JobStatus.RUNNING:
            lose_device(of)

    replicas.start(lose_device_when_two_run, slots=2, lease=timedelta(hours=1))
    until(lambda: replicas.deaths == [1])
    assert store.app_status(APP).replicas == ()
    store.run(Reap(app=APP, job_ttl=JOB_TTL))  # nobody waits for the lease: it was given up
    jobs = [view(store, job_id) for job_id in ids]
    assert [job.status for job in jobs] == 3 * [JobStatus.QUEUED]
    assert [job.attempt for job in jobs] == [1, 1, 0]  # nothing more was claimed
    replicas.start()
    jobs = [ended(store, job_id) for job_id in ids]
    assert [job.status for job in jobs] == 3 * [JobStatus.SUCCEEDED]
    assert [job.attempt for job in jobs] == [2, 2, 1]


def test_a_job_that_loses_the_device_every_time_ends_as_worker_lost(
    store: RedisJobStore, replicas: Replicas
) -> None:
    job_id = accept(store)
    for attempt in range(1, 4):
        replicas.start(lose_device)
        until(lambda n=attempt: len(replicas.deaths) == n)
        store.run(Reap(app=APP, job_ttl=JOB_TTL))
    failed = ended(store, job_id)
    assert (failed.status, failed.attempt) == (JobStatus.FAILED, 3)
    assert failed.error is not None
    assert failed.error.code == "worker_lost"


def test_what_is_drawn_already_survives_a_lost_device(
    store: RedisJobStore, replicas: Replicas, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = finisher.patiently

    def held(call: Callable[[], Any]) -> Any:
        gate.hold()
        return real(call)

    monkeypatch.setattr(finisher, "patiently", held)

    def on_step(of: GenerationParams) -> None:
        if of.seed == 8:
            gate.reached()  # the first job is being stored
            lose_device(of)

    drawn, lost = accept(store), accept(store, seed=8)
    puller = replicas.start(on_step)
    until(lambda: puller.is_stopping)  # it dies
    gate.open()
    until(lambda: replicas.deaths == [1])
    assert view(store, drawn).status is JobStatus.SUCCEEDED
    assert view(store, lost).status is JobStatus.RUNNING  # for the next reap


# --- hangs -----------------------------------------------------------------------------------


def test_a_hung_step_ends_the_replica_and_its_job_runs_elsewhere(
    store: RedisJobStore, replicas: Replicas, gate: Gate
) -> None:
    job_id = accept(store)
    replicas.start(gate.hold, lease=timedelta(hours=1), step_timeout=SECOND / CPU_PATIENCE)
    until(lambda: replicas.deaths == [1])
    assert view(store, job_id).attempt == 1
    replicas.start()
    done = ended(store, job_id)
    assert (done.status, done.attempt) == (JobStatus.SUCCEEDED, 2)
    gate.open()  # it wakes up after all: its result comes too late
    replicas.stop()
    assert view(store, job_id) == done


def test_a_hung_load_counts_and_the_third_breaks_the_app(
    store: RedisJobStore, replicas: Replicas, gate: Gate
) -> None:
    job_id = accept(store)

    def load(*_: object, on_phase: Callable[[str], None], **__: object) -> None:
        on_phase("reading file 45%")
        gate.hold()

    for failed in range(1, 4):
        replicas.start(load=load, load_timeout=SECOND)
        until(lambda n=failed: len(replicas.deaths) == n)
        assert store.load_failures(APP) == failed
    failed = ended(store, job_id)
    assert failed.error is not None
    assert failed.error.code == "app_broken"
    reason = "Loading (reading file 45%) has not ended within 1 s. (3 starts failed.)"
    assert failed.error.message == reason


def test_a_load_that_moves_on_may_take_longer_than_its_limit(
    store: RedisJobStore, replicas: Replicas
) -> None:
    def load(*_: object, on_phase: Callable[[str], None], **__: object) -> Any:
        for percent in range(0, 100, 5):
            on_phase(f"reading file {percent}%")
            time.sleep(0.3)
        return loads(lambda _: None)()

    replicas.start(load=load, load_timeout=4 * SECOND)
    job_id = accept(store)
    assert ended(store, job_id).status is JobStatus.SUCCEEDED
    assert replicas.deaths == []
