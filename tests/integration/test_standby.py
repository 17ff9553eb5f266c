"""The standby process: forks replicas that live and die with whoever asked for them."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis

from sdserve import keys
from sdserve.apps import AppState
from sdserve.checkpoints import inspect_checkpoint
from sdserve.daemon import Daemon
from sdserve.jobs import JobStatus
from sdserve.operations import Reap, ViewJob
from sdserve.store import RedisJobStore
from tests.values import APP, JOB_TTL, params_for, replica_settings, spec, submit
from tests.waiting import until
from workers import standby
from workers.standby import Child

pytestmark = pytest.mark.integration

DEMO = Path(__file__).parents[2] / "demo_models" / "tiny-shapes-sd15.safetensors"


@pytest.fixture
def raylet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """What stands for a Ray node: the standby ends when this process does."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        monkeypatch.setenv("RAY_RAYLET_PID", str(process.pid))
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        yield process
        process.kill()
    until(lambda: not list(tmp_path.glob("sdserve-standby-*")))


def fork(redis_url: str, **settings: Any) -> Child:
    app = spec(checkpoint=inspect_checkpoint(DEMO)[0])
    child = standby.fork_puller(app, replica_settings(redis_url, **settings), born=time.monotonic())
    assert child is not None
    return child


def pid_of(store: RedisJobStore) -> int:
    until(lambda: store.app_status(APP).state in (AppState.READY, AppState.BUSY))
    (replica,) = store.app_status(APP).replicas
    return replica.pid


def test_a_forked_replica_does_its_job_and_leaves_when_told(
    redis: Redis, redis_url: str, raylet: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    store = RedisJobStore(redis)
    child = fork(redis_url)
    job_id = store.run(submit(params=params_for(DEMO))).job_id
    until(lambda: store.run(ViewJob(job_id=job_id)).status is JobStatus.SUCCEEDED)
    replica = psutil.Process(pid_of(store))
    record = Daemon.find(next(tmp_path.glob("sdserve-standby-*")) / "process.json")
    assert record is not None
    assert replica.ppid() == record.pid
    child.stop()
    assert store.app_status(APP).replicas == ()
    until(lambda: not replica.is_running())


def test_a_killed_replica_is_noticed(
    redis: Redis, redis_url: str, raylet: subprocess.Popen[bytes]
) -> None:
    child = fork(redis_url)
    os.kill(pid_of(RedisJobStore(redis)), signal.SIGKILL)
    child.wait()


def test_a_replica_ends_with_whoever_asked_for_it(
    redis: Redis, redis_url: str, raylet: subprocess.Popen[bytes]
) -> None:
    child = fork(redis_url)
    replica = psutil.Process(pid_of(RedisJobStore(redis)))
    child.connection.close()  # what the system does when that process is killed
    until(lambda: not replica.is_running())


def running(store: RedisJobStore) -> str:
    """A long job that a replica has begun to draw."""
    long = params_for(DEMO, num_inference_steps=150, num_images=8)
    job_id = store.run(submit(params=long)).job_id
    until(lambda: store.run(ViewJob(job_id=job_id)).step > 0)
    return job_id


def test_a_terminated_replica_hands_its_job_back(
    redis: Redis, redis_url: str, raylet: subprocess.Popen[bytes]
) -> None:
    store = RedisJobStore(redis)
    child = fork(redis_url)
    job_id = running(store)
    os.kill(pid_of(store), signal.SIGTERM)
    child.wait()
    job = store.run(ViewJob(job_id=job_id))
    assert (job.status, job.attempt) == (JobStatus.QUEUED, 1)
    assert redis.hget(keys.JOB + job_id, "max_attempts") == b"4"  # no loss
    assert store.app_status(APP).replicas == ()


def test_one_that_is_told_to_stop_can_still_be_hurried(
    redis: Redis, redis_url: str, raylet: subprocess.Popen[bytes]
) -> None:
    store = RedisJobStore(redis)
    child = fork(redis_url, stop_grace=timedelta(hours=1))
    job_id = running(store)
    stopper = threading.Thread(target=child.stop)
    stopper.start()
    child.terminate()
    stopper.join()
    job = store.run(ViewJob(job_id=job_id))
    assert (job.status, job.attempt) == (JobStatus.QUEUED, 1)


def test_a_replica_whose_asker_is_killed_gives_its_job_up_at_once(
    redis: Redis, redis_url: str, raylet: subprocess.Popen[bytes]
) -> None:
    """It counts: Ray kills that process for the memory that the job takes."""
    store = RedisJobStore(redis)
    child = fork(redis_url, lease=timedelta(hours=1))
    job_id = running(store)
    replica = psutil.Process(pid_of(store))
    child.connection.shutdown(socket.SHUT_RDWR)
    child.connection.close()
    until(lambda: not replica.is_running())
    assert store.app_status(APP).replicas == ()
    store.run(Reap(app=APP, job_ttl=JOB_TTL))
    job = store.run(ViewJob(job_id=job_id))
    assert (job.status, job.attempt) == (JobStatus.QUEUED, 1)
    assert redis.hget(keys.JOB + job_id, "max_attempts") == b"3"


def test_a_killed_standby_leaves_its_replicas_alone_and_starts_again(
    redis: Redis, redis_url: str, raylet: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    store = RedisJobStore(redis)
    first = fork(redis_url)
    replica = psutil.Process(pid_of(store))
    os.kill(replica.ppid(), signal.SIGKILL)
    second = fork(redis_url)
    until(lambda: len(store.app_status(APP).replicas) == 2)
    assert replica.is_running()
    first.stop()
    second.stop()


def test_two_at_once_start_one(raylet: subprocess.Popen[bytes], tmp_path: Path) -> None:
    standby.ensure_standby()
    folder = next(tmp_path.glob("sdserve-standby-*"))
    record = (folder / "process.json").read_text()
    assert folder.stat().st_mode & 0o777 == 0o700
    standby.ensure_standby()
    assert (folder / "process.json").read_text() == record


def test_outside_ray_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_RAYLET_PID", raising=False)
    assert standby.fork_puller(spec(), replica_settings("redis://127.0.0.1:1"), born=0.0) is None
