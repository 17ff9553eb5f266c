"""What is done again and again beside the tasks, and how often."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from redis import Redis
from redis.exceptions import RedisError

from sdserve.errors import StoreUnavailableError
from sdserve.operations import TakeTurn
from sdserve.store import RedisJobStore
from workers.task_queue import QueueName
from workers.tasks import enqueue_feed, enqueue_retention
from workers.webhooks import SWEEP_INTERVAL, sweep

log = logging.getLogger(__name__)

LONGEST_SLEEP = 15.0  # seconds between two looks, for a Redis that was emptied meanwhile
SHORTEST_SLEEP = 0.01  # seconds
REDIS_RETRY = 2.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Chore:
    """Short work in the clock of a worker; what takes long is a task that it asks for.

    A full Redis takes no task: then the work does a part of it itself, for that may make room.
    """

    name: str
    interval: timedelta
    work: Callable[[Redis], None]


# By the queue whose workers do them.
CHORES: Mapping[QueueName, Sequence[Chore]] = {
    QueueName.SIDE_WORK: (
        Chore(name="retention", interval=timedelta(minutes=5), work=enqueue_retention),
    ),
    QueueName.BATCHES: (Chore(name="feed", interval=timedelta(seconds=1), work=enqueue_feed),),
    QueueName.WEBHOOKS: (Chore(name="webhooks", interval=SWEEP_INTERVAL, work=sweep),),
}


class Clock(threading.Thread):
    """Does the chores. Every worker has a clock; for each turn Redis lets one of them be first."""

    def __init__(self, redis: Redis, chores: Sequence[Chore]) -> None:
        super().__init__(name="clock", daemon=True)
        self._redis = redis
        self._chores = chores
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        sleep = 0.0
        while not self._stopped.wait(sleep):
            try:
                sleep = do_due(self._redis, self._chores)
            except (RedisError, StoreUnavailableError) as error:
                log.warning("no chores now: %s", error)
                sleep = REDIS_RETRY


def do_due(redis: Redis, chores: Sequence[Chore]) -> float:
    """Do the chores whose turn it is. Returns the seconds until the next turn of any of them."""
    store, sleep = RedisJobStore(redis), LONGEST_SLEEP
    for chore in chores:
        turn = store.run(TakeTurn(chore=chore.name, interval=chore.interval))
        next_turn = time.monotonic() + turn.left.total_seconds()
        if turn.is_mine:
            try:
                chore.work(redis)
            except (RedisError, StoreUnavailableError):
                raise
            except Exception:  # the others have their turn, and this one its next
                log.exception("%s failed", chore.name)
        sleep = min(sleep, max(next_turn - time.monotonic(), SHORTEST_SLEEP))
    return sleep
