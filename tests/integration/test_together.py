"""How many jobs a replica runs together: what its steps cost decides."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from redis import Redis

from sdserve.checkpoints import inspect_checkpoint
from sdserve.jobs import Job, JobStatus
from sdserve.operations import Admission, ViewJob
from sdserve.store import RedisJobStore
from tests.fake_engine import FakeEngine
from tests.integration.test_puller import DEMO
from tests.values import APP, params, replica_settings, spec, submit
from tests.waiting import until
from workers.denoising import Denoising
from workers.puller import Puller
from workers.width import Widths

pytestmark = pytest.mark.integration

SLOTS = 3
Start = Callable[..., "PacedEngine"]


class PacedEngine(FakeEngine):
    """Each of its steps takes as long as `seconds` says of the number of pictures in it."""

    def __init__(self, seconds: Callable[[int], float], *, fits: int) -> None:
        super().__init__(lambda _: None)
        self._seconds = seconds
        self._fits = fits  # pictures
        self.batches = list[tuple[tuple[int, int], ...]]()  # the sizes in each step

    def step(self, batch: Sequence[Denoising]) -> bool:
        self.batches.append(tuple((one.params.width, one.params.height) for one in batch))
        time.sleep(self._seconds(len(batch)))
        super().step(batch)
        return len(batch) <= self._fits


@pytest.fixture
def store(redis: Redis) -> RedisJobStore:
    made = RedisJobStore(redis)
    made.register_app(spec(checkpoint=inspect_checkpoint(DEMO)[0]))
    return made


@pytest.fixture
def start(store: RedisJobStore, redis_url: str) -> Iterator[Start]:
    pullers = list[Puller]()

    def make(seconds: Callable[[int], float], *, fits: int = SLOTS) -> PacedEngine:
        engine = PacedEngine(seconds, fits=fits)
        app = spec(checkpoint=inspect_checkpoint(DEMO)[0], slots=SLOTS)
        pullers.append(
            Puller(
                app,
                replica_settings(redis_url),
                born=time.monotonic(),
                load=lambda *_args, **_options: engine,
            )
        )
        return engine

    yield make
    for one in pullers:
        one.stop(timedelta(0))


def run(store: RedisJobStore, count: int, **changes: Any) -> list[Job]:
    asked = params(**{"num_inference_steps": 40, **changes})
    ids = [store.run(submit(params=asked)).job_id for _ in range(count)]

    def view() -> list[Job]:
        return [store.run(ViewJob(job_id=job_id)) for job_id in ids]

    until(lambda: all(job.status.is_final for job in view()))
    return view()


def slots(store: RedisJobStore) -> int:
    (replica,) = store.app_status(APP).replicas
    return replica.slots


def flat(_: int) -> float:
    return 0.01


def in_proportion(pictures: int) -> float:
    return 0.02 * pictures


def test_where_another_picture_is_nearly_free_jobs_run_together(
    store: RedisJobStore, start: Start
) -> None:
    engine = start(flat)
    jobs = run(store, 9)
    assert {job.status for job in jobs} == {JobStatus.SUCCEEDED}
    until(lambda: slots(store) == SLOTS)  # and whoever submits knows
    assert Counter(map(len, engine.batches)).most_common(1)[0][0] == SLOTS
    long = params(num_inference_steps=150)
    admissions = [store.run(submit(params=long)).admission for _ in range(SLOTS + 1)]
    assert admissions == [Admission.RUN_NOW] * SLOTS + [Admission.QUEUED]


def test_where_it_costs_as_much_as_alone_they_run_one_after_the_other(
    store: RedisJobStore, start: Start
) -> None:
    engine = start(in_proportion)
    jobs = run(store, 5, num_inference_steps=20)
    assert {job.status for job in jobs} == {JobStatus.SUCCEEDED}
    assert slots(store) == 1
    counts = Counter(map(len, engine.batches))
    assert counts[1] > 10 * counts[2] > 0  # it was tried
    ends = [job.finished_at for job in jobs if job.finished_at]
    assert ends == sorted(ends)


def test_a_batch_that_does_not_fit_into_memory_is_not_tried_over_and_over(
    store: RedisJobStore, start: Start
) -> None:
    engine = start(flat, fits=2)
    jobs = run(store, 9)
    assert {job.status for job in jobs} == {JobStatus.SUCCEEDED}
    until(lambda: slots(store) == 2)
    assert Counter(map(len, engine.batches))[3] == 1


def test_a_job_of_another_size_waits_until_the_others_are_done(
    store: RedisJobStore, start: Start
) -> None:
    engine = start(flat)
    run(store, 4)
    for width in (128, 192, 128):
        store.run(submit(params=params(num_inference_steps=40, width=width)))
    run(store, 2, width=192)
    assert all(len(set(sizes)) == 1 for sizes in engine.batches)


def test_what_a_shallow_step_costs_is_not_taken_for_that_of_a_whole_one(
    store: RedisJobStore, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt = list[float]()
    seen = Widths.seen

    def note(widths: Widths, size: tuple[int, int], rows: Sequence[int], seconds: float) -> None:
        learnt.append(seconds)
        seen(widths, size, rows, seconds)

    monkeypatch.setattr(Widths, "seen", note)
    engine = start(flat)
    (job,) = run(store, 1, step_cache=4)
    assert job.status is JobStatus.SUCCEEDED
    assert (len(engine.batches), len(learnt)) == (40, 10)


def test_a_result_says_whether_its_pixels_are_those_of_plain_diffusers(
    store: RedisJobStore, start: Start
) -> None:
    engine = start(flat)
    engine.is_exact = True

    def told(jobs: list[Job]) -> list[bool]:
        return [job.metrics.exact for job in jobs if job.metrics]

    assert told(run(store, 1, num_inference_steps=3)) == [True]
    assert told(run(store, 1, num_inference_steps=3, step_cache=2)) == [False]
    together = told(run(store, 6))
    assert len(together) == 6
    assert not all(together)  # some shared steps
    engine.is_exact = False
    assert told(run(store, 1, num_inference_steps=3)) == [False]
