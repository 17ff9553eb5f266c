"""What a replica bills: every job for its own part, however it ends, and nothing twice."""

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from redis import Redis

from sdserve.checkpoints import inspect_checkpoint
from sdserve.generation import GenerationParams
from sdserve.jobs import Job, JobFailure, JobStatus
from sdserve.operations import Cancel, ViewJob
from sdserve.store import RedisJobStore
from tests.fake_engine import OnStep, loads
from tests.integration.test_puller import DEMO
from tests.store_world import World
from tests.values import APP, JOB_TTL, params, replica_settings, spec, submit
from tests.waiting import until
from workers import puller as puller_module
from workers.puller import Puller
from workers.stopwatch import Section, Stopwatch

pytestmark = pytest.mark.integration

STEP = 0.02  # seconds of CPU time
Start = Callable[..., Puller]


@pytest.fixture
def store(redis: Redis) -> RedisJobStore:
    made = RedisJobStore(redis)
    made.register_app(spec(checkpoint=inspect_checkpoint(DEMO)[0]))
    return made


@pytest.fixture
def start(store: RedisJobStore, redis_url: str) -> Iterator[Start]:
    pullers = list[Puller]()

    def make(on_step: OnStep, *, slots: int = 1, **settings: Any) -> Puller:
        app = spec(checkpoint=inspect_checkpoint(DEMO)[0], slots=slots)
        made = Puller(
            app,
            replica_settings(redis_url, **settings),
            born=time.monotonic(),
            load=loads(on_step),
        )
        pullers.append(made)
        return made

    yield make
    for one in pullers:
        one.stop(timedelta(0))


def work(_: GenerationParams) -> None:
    end = time.thread_time() + STEP
    while time.thread_time() < end:
        pass


def ended(store: RedisJobStore, job_id: str) -> Job:
    until(lambda: store.run(ViewJob(job_id=job_id)).status.is_final)
    return store.run(ViewJob(job_id=job_id))


def test_the_parts_of_jobs_that_share_steps_add_up_to_the_time_the_replica_was_busy(
    store: RedisJobStore, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = list[Section]()

    class Witness(Stopwatch):
        def section(self, done: Callable[[Section], None]) -> Any:
            def seen(section: Section) -> None:
                sections.append(section)
                done(section)

            return super().section(seen)

    monkeypatch.setattr(puller_module, "Stopwatch", Witness)
    steps = (4, 12, 7, 9)
    ids = [store.run(submit(params=params(num_inference_steps=n))).job_id for n in steps]
    start(work, slots=3)
    jobs = [ended(store, job_id) for job_id in ids]
    bills = [job.metrics for job in jobs if job.metrics]
    assert len(bills) == len(steps)
    busy = sum(section.seconds for section in sections)
    told = sum(bill.encode_seconds + bill.denoise_seconds + bill.decode_seconds for bill in bills)
    assert told == pytest.approx(busy, rel=0.01)
    assert len(sections) < sum(steps) + 2 * len(steps)  # some steps were shared
    used = [job.usage for job in jobs if job.usage]
    assert [one.steps for one in used] == list(steps)
    cpu = sum(section.cpu_seconds for section in sections)
    assert sum(one.cpu_ms for one in used) / 1000 >= cpu - 0.001 * len(used)  # and the encoding
    assert {bill.gpu_seconds for bill in bills} == {None}
    assert {one.gpu_ms for one in used} == {0}


def test_a_cancelled_job_is_billed_for_the_steps_it_took(
    store: RedisJobStore, redis: Redis, start: Start
) -> None:
    job_id = store.run(submit(params=params(num_inference_steps=150))).job_id

    def cancel_at_fifth(params_: GenerationParams) -> None:
        work(params_)
        if len(taken) == 5:
            store.run(Cancel(app=APP, job_id=job_id, job_ttl=JOB_TTL))
        taken.append(1)

    taken = list[int]()
    start(cancel_at_fifth, lease=timedelta(seconds=1))
    job = ended(store, job_id)
    assert job.status is JobStatus.CANCELLED
    assert job.usage is not None
    assert job.usage.steps == len(taken) < 150
    assert job.usage.cpu_ms >= 1000 * STEP * len(taken)
    assert (job.usage.images, job.usage.result_bytes) == (0, 0)
    rows = World(store, redis).used(job_id)
    assert {(row.app, row.usage) for row in rows} == {("", job.usage), (APP, job.usage)}


def test_a_failed_job_is_billed_for_the_steps_it_took(store: RedisJobStore, start: Start) -> None:
    taken = list[int]()

    def fail_at_fourth(params_: GenerationParams) -> None:
        work(params_)
        taken.append(1)
        if len(taken) == 4:
            raise ValueError("no")

    job_id = store.run(submit(params=params(num_inference_steps=9))).job_id
    start(fail_at_fourth)
    job = ended(store, job_id)
    assert job.status is JobStatus.FAILED
    assert isinstance(job.error, JobFailure)
    assert job.usage is not None
    assert job.usage.steps == 3
    assert job.usage.cpu_ms >= 1000 * STEP * 4  # the step that failed has taken its time


def test_a_job_that_is_handed_back_is_billed_by_who_ends_it(
    store: RedisJobStore, start: Start
) -> None:
    operation = submit(params=params(num_inference_steps=6))
    taken = list[int]()

    def hold_at_third(_: GenerationParams) -> None:
        taken.append(1)
        if len(taken) == 3:
            until(lambda: store.run(ViewJob(job_id=operation.job_id)).attempt == 2)

    first = start(hold_at_third)
    store.run(operation)
    until(lambda: len(taken) == 3)
    first.stop(timedelta(0))
    start(work)
    job = ended(store, operation.job_id)
    assert job.usage is not None
    used = (job.usage.jobs_succeeded, job.usage.images, job.usage.steps)
    assert (job.attempt, used) == (2, (1, 1, 6))
