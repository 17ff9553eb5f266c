"""The replica under Ray Serve: what ends its work ends its process, and Serve starts another."""

import os
import signal
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis

from sdserve import keys
from sdserve.apps import AppSpec, AppState, ReplicaPresence
from sdserve.checkpoints import inspect_checkpoint
from sdserve.jobs import Job, JobStatus
from sdserve.operations import Cancel, ViewJob
from sdserve.store import RedisJobStore
from tests.values import APP, JOB_TTL, params_for, replica_settings, spec, submit
from tests.waiting import until
from workers.replica import DiffusionReplica
from workers.replica_settings import ReplicaSettings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own; here they would be errors
    import ray
    from ray import serve

    from deploy_scripts.cluster import RAY_ENVIRONMENT

# Ray leaves sockets and processes to the end of the process.
pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore"),
]

DEMO = Path(__file__).parents[2] / "demo_models" / "tiny-shapes-sd15.safetensors"


class WithoutStandby(DiffusionReplica):
    """Pulls in its own process, as where no standby can be started."""

    def __init__(self, spec: AppSpec, settings: ReplicaSettings) -> None:
        del os.environ["RAY_RAYLET_PID"]
        super().__init__(spec, settings)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY_ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        serve.shutdown()
        ray.shutdown()


@pytest.fixture(params=[DiffusionReplica, WithoutStandby])
def store(
    request: pytest.FixtureRequest, cluster: None, redis: Redis, redis_url: str
) -> Iterator[RedisJobStore]:
    """With one replica of the demo app deployed."""
    made = RedisJobStore(redis)
    app = spec(checkpoint=inspect_checkpoint(DEMO)[0])
    made.register_app(app)
    deployment = serve.deployment(name=APP, health_check_period_s=1)(request.param)
    settings = replica_settings(redis_url, lease=timedelta(seconds=2))
    serve.run(deployment.bind(app, settings), name=APP, route_prefix=None)
    yield made
    held: Any = redis.zrange(keys.LEASE + APP, 0, -1)
    for job_id in held:  # else Serve waits for them
        made.run(Cancel(app=APP, job_id=job_id.decode(), job_ttl=JOB_TTL))
    serve.delete(APP)


def replica(store: RedisJobStore) -> ReplicaPresence:
    until(lambda: store.app_status(APP).state in (AppState.READY, AppState.BUSY))
    return store.app_status(APP).replicas[0]


def running(store: RedisJobStore) -> str:
    long = params_for(DEMO, num_inference_steps=150, num_images=8)
    job_id = store.run(submit(params=long)).job_id
    until(lambda: view(store, job_id).step > 0)
    return job_id


def view(store: RedisJobStore, job_id: str) -> Job:
    return store.run(ViewJob(job_id=job_id))


def test_a_killed_puller_is_replaced_and_its_job_runs_again(store: RedisJobStore) -> None:
    first = replica(store)
    job_id = running(store)
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: view(store, job_id).attempt == 2)
    job = view(store, job_id)
    assert job.status is JobStatus.RUNNING
    assert job.owner != first.id
    assert replica(store).pid != first.pid


def test_a_terminated_replica_hands_its_job_back_and_is_replaced(
    store: RedisJobStore, redis: Redis
) -> None:
    first = replica(store)
    job_id = running(store)
    os.kill(serve_process(first.pid), signal.SIGTERM)
    until(lambda: view(store, job_id).attempt == 2)
    assert redis.hget(keys.JOB + job_id, "max_attempts") == b"4"  # no loss
    until(lambda: not psutil.pid_exists(first.pid))


def test_a_puller_that_dies_ends_the_replica_with_it(store: RedisJobStore, redis: Redis) -> None:
    first = replica(store)
    # What no replica survives: an error that is neither of a job nor of a Redis that is away.
    redis.set(keys.LEASE + APP, "not a sorted set")
    until(lambda: not psutil.pid_exists(first.pid))
    redis.delete(keys.LEASE + APP)
    until(lambda: {other.pid for other in store.app_status(APP).replicas} - {first.pid})
    assert replica(store).pid != first.pid


def serve_process(pid: int) -> int:
    """Ray's process of the only replica: `pid` itself, or that which asked for `pid`."""
    processes = psutil.process_iter(["pid", "cmdline"])
    (found,) = (p.pid for p in processes if f"ServeReplica:{APP}" in " ".join(p.cmdline()))
    return found
