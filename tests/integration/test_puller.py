"""A replica that cannot load its model gives an answer, never a loop."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from sdserve.apps import AppState
from sdserve.checkpoints import inspect_checkpoint
from sdserve.jobs import JobStatus
from sdserve.operations import ViewJob
from sdserve.store import RedisJobStore
from tests.values import APP, params_for, replica_settings, spec, submit
from tests.waiting import until
from workers import memory
from workers.puller import Puller
from workers.startup import MAX_LOAD_FAILURES

pytestmark = pytest.mark.integration

DEMO = Path(__file__).parents[2] / "demo_models" / "tiny-shapes-sd15.safetensors"


@pytest.fixture
def store(redis: Redis) -> RedisJobStore:
    """With the demo app registered and one job waiting."""
    made = RedisJobStore(redis)
    made.register_app(spec(checkpoint=inspect_checkpoint(DEMO)[0]))
    return made


def start(
    store: RedisJobStore, redis_url: str, end_process: Callable[[int], object] | None = None
) -> Puller:
    (app,) = store.apps().values()
    settings = replica_settings(redis_url)
    return Puller(app, settings, born=time.monotonic(), end_process=end_process)


def test_too_little_memory_is_an_answer_with_numbers(
    store: RedisJobStore, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "host_bytes_free", lambda: 2**20)
    job_id = store.run(submit(params=params_for(DEMO))).job_id
    for failed in range(1, MAX_LOAD_FAILURES + 1):
        ends: list[int] = []
        start(store, redis_url, ends.append)
        until(lambda ends=ends: ends == [1])  # Serve starts another one
        assert store.load_failures(APP) == failed
        assert store.app_status(APP).replicas == ()
        if failed < MAX_LOAD_FAILURES:
            assert store.run(ViewJob(job_id=job_id)).status is JobStatus.QUEUED
    assert store.app_status(APP).state is AppState.BROKEN
    job = store.run(ViewJob(job_id=job_id))
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert "The model needs 19 MiB to load, the host has 1 MiB free" in job.error.message
    assert "3 starts failed" in job.error.message
    idle = start(store, redis_url)  # Serve's next one: it has nothing to do, and keeps the reason
    until(lambda: store.app_status(APP).phase == f"broken: {job.error and job.error.message}")
    idle.stop()


def test_starts_that_are_killed_do_not_go_on_for_ever(store: RedisJobStore, redis_url: str) -> None:
    for _ in range(MAX_LOAD_FAILURES):
        store.count_load_failure(APP)
    puller = start(store, redis_url)
    until(lambda: store.app_status(APP).state is AppState.BROKEN)
    puller.stop()
    reason = store.app_status(APP).broken_reason
    assert reason is not None
    assert "3 starts in a row ended before the model was loaded" in reason


def test_a_replaced_file_ends_running_and_waiting_jobs(
    store: RedisJobStore, redis_url: str, tmp_path: Path
) -> None:
    file = tmp_path / DEMO.name
    file.write_bytes(DEMO.read_bytes())
    store.register_app(spec(checkpoint=inspect_checkpoint(file)[0]))
    puller = start(store, redis_url)
    until(lambda: store.app_status(APP).state is AppState.READY)
    long = params_for(DEMO, num_inference_steps=150, num_images=8)
    ids = [store.run(submit(params=long)).job_id for _ in range(2)]
    until(lambda: store.run(ViewJob(job_id=ids[0])).status is JobStatus.RUNNING)
    file.write_bytes(DEMO.read_bytes())  # another modification time
    until(lambda: store.app_status(APP).state is AppState.BROKEN)
    puller.stop()
    for job_id in ids:
        job = store.run(ViewJob(job_id=job_id))
        assert job.status is JobStatus.FAILED
        assert job.error is not None
        assert "was replaced after it was deployed" in job.error.message
