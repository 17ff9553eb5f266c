"""The autoscaling policy that runs inside Serve's controller.

Queue depth and leases from Redis decide, not Serve's request counts: a pulled job is no request.
"""

import time
from typing import Any, Protocol

from deploy_scripts import queue_watch
from sdserve.apps import AppSpec
from sdserve.scaling import Demand


class ScalingContext(Protocol):
    """What this policy uses of ray.serve.config.AutoscalingContext."""

    current_num_replicas: int
    target_num_replicas: int


class QueuePolicy:
    """Class-based Serve autoscaling policy: `(context) -> (replicas, state)`.

    Ray Serve 2.60, ray.serve.config.AutoscalingPolicy: made once per deployment, called in the
    controller's loop. Serve pickles it into its checkpoints and into every replica's arguments, so
    it pickles as its two strings. Serve also pickles this whole module by value, its globals
    included: that is why the watch, with its thread and its connection, lives in another one.
    """

    def __init__(self, spec: str, redis_url: str) -> None:
        self._spec = spec
        self._redis_url = redis_url
        self._app = AppSpec.from_json(spec)
        self._demand = Demand(
            min_replicas=self._app.min_replicas,
            max_replicas=self._app.max_replicas,
            idle_timeout=self._app.idle_timeout,
        )

    def __reduce__(self) -> tuple[type["QueuePolicy"], tuple[str, str]]:
        return QueuePolicy, (self._spec, self._redis_url)

    def __call__(self, context: ScalingContext) -> tuple[int, dict[str, Any]]:
        watch = queue_watch.watch_of(self._redis_url)
        watch.follow(self._app)
        status = watch.status(self._app.name)
        if status is None:
            return context.target_num_replicas, {}
        if watch.take_eviction(self._app.name):
            self._demand.forget()
        wanted = self._demand.wanted(status, context.current_num_replicas, time.monotonic())
        return wanted, {}
