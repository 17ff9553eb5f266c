"""The RQ worker: does our tasks and nothing else, on a real server, in a real process."""

import hashlib
import json
import os
import pickle
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from redis import Redis
from rq.job import Job, JobStatus

from sdserve import keys
from sdserve.apps import AppState, ReplicaPresence
from sdserve.checkpoints import ModelFile
from sdserve.daemon import Daemon
from sdserve.operations import Beat
from sdserve.redis_server import ensure_redis, stop_redis
from sdserve.settings import Settings
from sdserve.store import RedisJobStore, connect
from tests.rq_worker import working
from tests.values import APP, LEASE, submit
from workers.task_queue import AllowedJob, QueueName, task_queue
from workers.tasks import enqueue_preload, enqueue_retention, hash_checkpoint, retention

pytestmark = pytest.mark.integration

LIMIT = 60  # seconds, on a loaded machine


@pytest.fixture
def worker(redis: Redis, redis_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker on an empty database."""
    with working(redis_url) as process:
        yield process


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def forged(redis: Redis, data: bytes, **fields: str) -> Job:
    """A task as somebody with access to Redis could write it."""
    job = task_queue(redis).enqueue(retention)
    redis.hset(job.key, mapping={"data": data, **fields})
    return job


def status(job: Job) -> JobStatus:
    return job.get_status(refresh=True)


def test_a_preload_wishes_a_replica_and_waits_for_it(
    redis: Redis, worker: subprocess.Popen[bytes]
) -> None:
    store = RedisJobStore(redis)
    enqueue_preload(redis, APP, seconds=60, limit=LIMIT)
    until(lambda: store.app_status(APP).wished)
    ready = ReplicaPresence(id="r", state=AppState.READY, phase="ready", pid=1, node="n")
    store.run(Beat(app=APP, presence=ready, lease=LEASE, jobs=[]))
    finished = task_queue(redis).finished_job_registry
    until(
        lambda: any(
            AllowedJob.fetch(job_id, redis, serializer="json").return_value() == "ready"
            for job_id in finished.get_job_ids()
        )
    )


def test_functions_that_are_no_tasks_do_not_run(
    redis: Redis, worker: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    touch = f"touch {marker}"
    payload = json.dumps(["os.system", None, [touch], {}]).encode()

    class Exploit:
        def __reduce__(self) -> tuple[Callable[..., int], tuple[list[str]]]:
            return subprocess.call, (["touch", str(marker)],)

    jobs = [
        forged(redis, payload),
        forged(redis, json.dumps(["system", "os", [touch], {}]).encode()),
        forged(redis, pickle.dumps(Exploit())),
    ]
    until(lambda: all(status(job) is JobStatus.FAILED for job in jobs))
    assert not marker.exists()


def test_callbacks_are_not_called(
    redis: Redis, worker: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    module = tmp_path / "exploit.py"
    marker = tmp_path / "ran"
    module.write_text(f"def call(*_):\n    open({str(marker)!r}, 'w')\n")
    payload = json.dumps(["workers.tasks.retention", None, [], {}]).encode()
    names = ("success_callback_name", "failure_callback_name", "stopped_callback_name")
    job = forged(redis, payload, **dict.fromkeys(names, "exploit.call"))
    until(lambda: status(job) is JobStatus.FINISHED)
    assert not marker.exists()


def test_a_worker_asks_for_retention_and_does_it(
    redis: Redis, worker: subprocess.Popen[bytes]
) -> None:
    until(lambda: len(task_queue(redis).finished_job_registry.get_job_ids()) == 1)


def test_retention_forgets_only_what_has_expired_for_long(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    store = RedisJobStore(redis)
    old, recent, alive = (store.run(submit()).job_id for _ in range(3))
    redis.delete(keys.JOB + old, keys.JOB + recent)
    long_ago = (time.time() - timedelta(days=8).total_seconds()) * 1000
    redis.zadd(keys.INDEX, {old: long_ago})
    assert retention() == 1
    left = redis.zrange(keys.INDEX, 0, -1)
    assert isinstance(left, list)
    assert set(left) == {recent.encode(), alive.encode()}


def test_a_file_is_hashed_once_per_content(
    redis: Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"x" * 1000)
    old = ModelFile.at(path)
    sha256 = hash_checkpoint(str(path))
    assert sha256 == hashlib.sha256(b"x" * 1000).hexdigest()
    os.utime(path, (1, 1))
    assert RedisJobStore(redis).sha256s([old, ModelFile.at(path)]) == [sha256, None]


def test_all_keys_of_rq_are_under_our_prefix(redis: Redis) -> None:
    enqueue_retention(redis)
    found = [key.decode() for key in redis.scan_iter("*")]
    assert found
    assert all(key.startswith("sd:") for key in found), found


def test_a_worker_does_the_tasks_of_its_queue_only(redis: Redis, redis_url: str) -> None:
    of_others = task_queue(redis).enqueue(retention)
    with working(redis_url, queue=QueueName.WEBHOOKS):
        mine = task_queue(redis, QueueName.WEBHOOKS).enqueue(retention)
        until(lambda: status(mine) is JobStatus.FINISHED)
        assert status(of_others) is JobStatus.QUEUED


def test_a_worker_ends_when_it_is_told_to(redis: Redis, worker: subprocess.Popen[bytes]) -> None:
    until(lambda: len(task_queue(redis).finished_job_registry.get_job_ids()) == 1)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(LIMIT) == 0


def test_a_worker_outlives_a_crash_of_redis(tmp_path: Path) -> None:
    settings = Settings(redis_url=None, state_dir=tmp_path)
    url = ensure_redis(settings)
    log = tmp_path / "worker.log"
    try:
        with working(url, log) as process:
            enqueue_preload(connect(url), APP, seconds=60, limit=1)
            until(lambda: RedisJobStore(connect(url)).app_status(APP).wished)
            daemon = Daemon.find(tmp_path / "redis" / "server.json")
            assert daemon is not None
            os.kill(daemon.pid, signal.SIGKILL)
            until(lambda: "Redis is away" in log.read_text())  # RQ's own loop has given up
            ensure_redis(settings)
            later = task_queue(connect(url, reply_timeout=5)).enqueue(retention)
            until(lambda: status(later) is JobStatus.FINISHED)
            assert process.poll() is None
    finally:
        stop_redis(settings)
