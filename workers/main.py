"""The RQ worker process: `python -m workers.main`. It does side work, never generations."""

import logging
import sys
import threading
import time
from types import FrameType

from redis import Redis
from redis.exceptions import RedisError
from rq import Worker
from rq.exceptions import StopRequested
from rq.serializers import JSONSerializer

from sdserve.errors import SdServeError
from sdserve.redis_server import ensure_redis
from sdserve.settings import read_settings
from workers.task_queue import AllowedJob, TaskQueue, task_queue
from workers.tasks import enqueue_due_retention

log = logging.getLogger(__name__)

WORKER_TTL = 60  # seconds; a worker that is gone so long gives its task back
MONITORING_INTERVAL = 5  # seconds
CLOCK_INTERVAL = 15.0  # seconds between looks whether a periodic task is due
REDIS_RETRY = 2.0  # seconds


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        settings = read_settings()
        redis_url = ensure_redis(settings)
    except SdServeError as error:
        log.error("%s", error)
        return 1
    threading.Thread(target=_clock, args=(redis_url,), name="clock", daemon=True).start()
    redis = Redis.from_url(redis_url)
    try:
        while not _told_to_stop(redis):
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


def _told_to_stop(redis: Redis) -> bool:
    """Do tasks until a signal comes (True) or Redis goes (False)."""
    worker = None
    try:
        worker = TaskWorker(
            [task_queue(redis)],
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


def _clock(redis_url: str) -> None:
    """Ask for the periodic tasks. Every worker has a clock; Redis lets one of them be first."""
    redis = Redis.from_url(redis_url, socket_timeout=5)
    while True:
        try:
            enqueue_due_retention(redis)
        except RedisError as error:
            log.warning("no periodic tasks now: %s", error)
        time.sleep(CLOCK_INTERVAL)


if __name__ == "__main__":
    sys.exit(main())
