"""The queues of side work: RQ with a JSON serializer and an allow-list of functions.

RQ imports and calls whatever dotted name a job in Redis carries, even under the JSON serializer:
who can write to Redis could run `os.system` in the worker. Our job class only knows our tasks.
"""

import logging
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from redis import Redis
from rq import Queue
from rq.defaults import RQ_KEY_PREFIX
from rq.job import Job
from rq.serializers import JSONSerializer

from workers import RQ_PREFIX

log = logging.getLogger(__name__)

if RQ_KEY_PREFIX != RQ_PREFIX:
    # Two processes with different prefixes would silently work on different queues.
    raise ImportError("rq was imported before workers: import workers first.")


class QueueName(StrEnum):
    """A queue of tasks, with workers of its own.

    A worker has one queue: with several, RQ loses a task whose worker dies before it starts it.
    """

    SIDE_WORK = "side-work"
    BATCHES = "batches"  # apart: feeding follows the replicas, and side work may take minutes
    WEBHOOKS = "webhooks"  # apart: a slow receiver holds up nothing else


ALLOWED = frozenset(
    {
        "workers.tasks.feed",
        "workers.tasks.hash_checkpoint",
        "workers.tasks.preload",
        "workers.tasks.retention",
        "workers.webhooks.deliver",
    }
)
RESULT_TTL = 3600  # seconds
FAILURE_TTL = 7 * 86400  # seconds


class TaskRefusedError(Exception):
    """A job in the queue names a function that is not one of our tasks."""


class AllowedJob(Job):
    """A job that can only be one of our tasks, and calls nothing else before or after."""

    @property
    def func(self) -> Callable[..., Any]:
        function = super().func if self.func_name in ALLOWED and self.instance is None else None
        if not callable(function):
            message = f"'{self.func_name}' is no task of ours ({', '.join(sorted(ALLOWED))})."
            raise TaskRefusedError(message)
        return function

    # Our tasks have no callbacks, so a job that carries one was not made by us.
    @property
    def success_callback(self) -> None:
        return self._refuse(self._success_callback_name)

    @property
    def failure_callback(self) -> None:
        return self._refuse(self._failure_callback_name)

    @property
    def stopped_callback(self) -> None:
        return self._refuse(self._stopped_callback_name)

    def _refuse(self, callback: str | None) -> None:
        if callback:
            log.warning("task %s: its callback '%s' is not called", self.id, callback)


class TaskQueue(Queue):
    """A queue whose jobs are AllowedJobs."""

    job_class = AllowedJob


def task_queue(redis: Redis, name: QueueName = QueueName.SIDE_WORK) -> TaskQueue:
    """A queue of tasks."""
    return TaskQueue(name, connection=redis, serializer=JSONSerializer)
