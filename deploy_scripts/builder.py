"""Builds Serve applications from specifications: the only place that decorates classes for Ray."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.schema import LoggingConfig

from api import gateway
from api.edge import EdgeSettings
from deploy_scripts.policy import QueuePolicy
from sdserve.apps import AppSpec
from sdserve.secret import Secret
from sdserve.settings import Settings
from workers.replica import DiffusionReplica
from workers.replica_settings import ReplicaSettings

# Shutting down takes this much longer than the longest job: finishing, storing, leaving.
STOP_MARGIN = timedelta(seconds=30)
STOP_GRACE = timedelta(minutes=10)  # for a job that runs when its replica is told to stop
SYNC_WAIT = timedelta(seconds=60)
# Per process of the gateway: long polls, streams and the like (api/held.py, bench/waiters.py).
MAX_HELD_REQUESTS = 5_000
# One more would wait in Serve's proxy, so there is room for health checks, submissions, cancels.
MAX_ONGOING_REQUESTS = MAX_HELD_REQUESTS + 500
# The gateway waits for Redis nearly all of its time. Nothing in it blocks, so its requests need no
# event loop beside Serve's own, and no two turns from thread to thread each.
LIGHT: dict[str, Any] = {
    "num_cpus": 0,
    "runtime_env": {"env_vars": {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}},
}


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What every process of the cluster is told of the world around it."""

    edge: EdgeSettings
    replica: ReplicaSettings
    http_processes: int
    has_access_log: bool

    @classmethod
    def of(cls, settings: Settings, redis_url: str, *, is_key_required: bool) -> "Surroundings":
        return cls(
            edge=EdgeSettings(
                redis_url=redis_url,
                job_ttl=settings.job_ttl,
                sync_wait=SYNC_WAIT,
                is_key_required=is_key_required,
                hosts=settings.hosts,
                webhooks=settings.webhook_targets,
                limits=settings.limits,
                max_held=MAX_HELD_REQUESTS,
                max_held_per_key=settings.max_held_per_key,
                max_body_bytes=settings.max_body_bytes,
                body_timeout=settings.body_timeout,
            ),
            replica=ReplicaSettings(
                redis_url=redis_url,
                lease=settings.lease,
                job_ttl=settings.job_ttl,
                results=settings.limits.results,
                max_result_bytes=settings.max_result_bytes,
                stop_grace=STOP_GRACE,
                step_timeout=settings.step_timeout,
                load_timeout=settings.load_timeout,
                compile_cache=settings.state_dir.absolute() / "compiled",
            ),
            http_processes=settings.http_processes,
            has_access_log=settings.access_log,
        )


def build_app(spec: AppSpec, surroundings: Surroundings) -> Any:
    """The Serve application of one checkpoint: 0..N replicas, which nobody sends a request."""
    return serve.deployment(
        name="DiffusionReplica",
        ray_actor_options={"num_gpus": spec.num_gpus, "num_cpus": spec.num_cpus},
        autoscaling_config=AutoscalingConfig(
            # The policy keeps the minimum and the time itself. Were Serve to know the minimum,
            # a deployment would block until there is a free GPU for it.
            min_replicas=0,
            max_replicas=spec.max_replicas,
            initial_replicas=0,
            upscale_delay_s=0,
            downscale_delay_s=0,
            downscale_to_zero_delay_s=0,
            policy=AutoscalingPolicy(
                policy_function=QueuePolicy,
                policy_kwargs={
                    "spec": spec.to_json(),
                    "redis_url": Secret(surroundings.edge.redis_url),
                },
            ),
        ),
        health_check_period_s=1,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=1,
        graceful_shutdown_timeout_s=(STOP_GRACE + STOP_MARGIN).total_seconds(),
    )(DiffusionReplica).bind(spec, surroundings.replica)


def build_gateway(surroundings: Surroundings) -> Any:
    """The Serve application at `/`: the HTTP of all apps, in processes that are always there."""

    def asgi() -> FastAPI:
        return gateway.create_app(surroundings.edge)

    return serve.deployment(
        name="Gateway",
        num_replicas=surroundings.http_processes,
        ray_actor_options=LIGHT,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        logging_config=LoggingConfig(enable_access_log=surroundings.has_access_log),
        health_check_period_s=1,
        health_check_timeout_s=10,
        graceful_shutdown_wait_loop_s=1,
        graceful_shutdown_timeout_s=10,
    )(serve.ingress(asgi)()).bind()
