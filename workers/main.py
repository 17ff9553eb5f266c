"""The RQ worker process: `python -m workers.main [QUEUE]`. Side work, never generations."""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from types import FrameType

from redis import Redis
from redis.exceptions import RedisError
from rq import Worker
from rq.exceptions import StopRequested
from rq.serializers import JSONSerializer

from sdserve.errors import SdServeError
from sdserve.redis_server import ensure_redis
from sdserve.settings import read_settings
from workers.chores import CHORES, REDIS_RETRY, Clock
from workers.task_queue import AllowedJob, QueueName, TaskQueue, task_queue

log = logging.getLogger(__name__)

WORKER_TTL = 60  # seconds; a worker that is gone so long gives its task back
MONITORING_INTERVAL = 5  # seconds


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="workers.main", description=__doc__)
    parser.add_argument(
        "queue", nargs="?", type=QueueName, choices=list(QueueName), default=QueueName.SIDE_WORK
    )
    queue: QueueName = parser.parse_args(arguments).queue
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        settings = read_settings()
        redis_url = ensure_redis(settings)
    except SdServeError as error:
        log.error("%s", error)
        return 1
    Clock(Redis.from_url(redis_url, socket_timeout=5), CHORES[queue]).start()
    redis = Redis.from_url(redis_url)
    try:
        while not _told_to_stop(redis, queue):
            time.sleep(REDIS_RETRY)
    except StopRequested:  # told while it waited
        pass
    return 0


class TaskWorker(Worker):
    """An RQ worker that knows why it ended: `work` returns in the same way when Redis goes."""

    max_connection_wait_time = REDIS_RETRY
    told_to_stop = False

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        self.told_to_stop = True
        super().request_stop(signum, frame)


def _told_to_stop(redis: Redis, queue: QueueName) -> bool:
    """Do tasks until a signal comes (True) or Redis goes (False)."""
    worker = None
    try:
        worker = TaskWorker(
            [task_queue(redis, queue)],
            connection=redis,
            serializer=JSONSerializer,
            job_class=AllowedJob,
            queue_class=TaskQueue,
            worker_ttl=WORKER_TTL,
            maintenance_interval=WORKER_TTL,
            job_monitoring_interval=MONITORING_INTERVAL,
        )
        worker.work(logging_level="INFO")
    except RedisError as error:
        log.warning("Redis is away (%s); again in %g s", error, REDIS_RETRY)
    return worker is not None and worker.told_to_stop


if __name__ == "__main__":
    sys.exit(main())
