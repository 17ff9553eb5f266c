"""The tasks of the RQ worker. Each is idempotent: to run it twice does no harm."""

import hashlib
import logging
import time
from pathlib import Path

from redis import Redis
from redis.exceptions import OutOfMemoryError
from rq import Retry

from sdserve import keys
from sdserve.apps import AppState
from sdserve.checkpoints import ModelFile
from sdserve.limits import REMEMBERED
from sdserve.redis_server import ensure_redis
from sdserve.settings import Settings, read_settings
from sdserve.store import RedisJobStore, connect
from workers.feeder import Feeder
from workers.task_queue import FAILURE_TTL, RESULT_TTL, QueueName, task_queue

log = logging.getLogger(__name__)

LOOK_INTERVAL = 0.5  # seconds
TRIM_BATCH = 1000
FEED_SPAN = 30  # seconds of one task
FEED_INTERVAL = 0.2  # seconds between two rounds: a model that draws 200 a second is never short
FEED_PATIENCE = 5  # seconds without a round: then the task is lost, and another is asked for
FEED_FAILURE_TTL = 3600  # seconds
HASH_LIMIT = 3600  # seconds; 14 GB from a slow share


def preload(app: str, seconds: float, limit: float) -> str:
    """Bring an app up before its traffic and keep it warm for `seconds`.

    Args:
        app: name of a deployed app.
        seconds: how long the wish for a replica holds.
        limit: seconds to wait for the replica.

    Returns:
        the app's state when it can serve, is broken, or the limit has passed.
    """
    store = _store()
    store.wish_replica(app, seconds)
    deadline = time.monotonic() + limit
    while True:
        state = store.app_status(app).state
        is_settled = state in (AppState.READY, AppState.BUSY, AppState.BROKEN)
        if is_settled or time.monotonic() > deadline:
            log.info("preload of %s: %s", app, state)
            return state.value
        time.sleep(LOOK_INTERVAL)


def retention() -> int:
    """Forget jobs that have expired for long. Returns how many."""
    store, forgotten = _store(), 0
    while trimmed := store.trim(older_than=REMEMBERED, limit=TRIM_BATCH):
        forgotten += trimmed
    return forgotten


def hash_checkpoint(path: str) -> str | None:
    """Note the SHA-256 of a file. None if it changed meanwhile: its next deploy asks again."""
    store, file = _store(), ModelFile.at(Path(path))
    with file.path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    if ModelFile.at(file.path) != file:
        return None
    store.note_sha256(file, sha256)
    return sha256


def feed() -> int:
    """Hand over lines of batches for a while, and ask for the next one to go on. Returns rounds."""
    settings = read_settings()
    redis = connect(ensure_redis(settings), reply_timeout=5)
    feeder = _feeder(redis, settings)
    end, rounds = time.monotonic() + FEED_SPAN, 0
    while True:
        began = time.monotonic()
        redis.set(keys.FEEDING, "1", ex=FEED_PATIENCE)
        rounds += 1
        if not feeder.round():
            redis.delete(keys.FEEDING)
            return rounds
        if began > end:
            _enqueue_feed(redis)
            return rounds
        time.sleep(max(0.0, FEED_INTERVAL - (time.monotonic() - began)))


def enqueue_feed(redis: Redis) -> None:
    """Ask a worker to feed batches, when there are some and nobody has fed them lately."""
    if not redis.zcard(keys.OPEN_BATCHES):
        return
    try:
        if redis.set(keys.FEEDING, "1", nx=True, ex=FEED_PATIENCE):
            _enqueue_feed(redis)
    except OutOfMemoryError:  # what is packed makes room
        log.warning("Redis is full: the clock does a round of feeding")
        _feeder(redis, read_settings()).round()


def _enqueue_feed(redis: Redis) -> None:
    queue = task_queue(redis, QueueName.BATCHES)
    if queue.count == 0:  # one that waits is enough: each asks for its successor
        queue.enqueue(feed, job_timeout=FEED_SPAN + 60, result_ttl=0, failure_ttl=FEED_FAILURE_TTL)


def enqueue_hash(redis: Redis, path: Path) -> None:
    """Ask a worker that sees the file for its SHA-256."""
    task_queue(redis).enqueue(
        hash_checkpoint,
        str(path),
        job_timeout=HASH_LIMIT,
        result_ttl=RESULT_TTL,
        failure_ttl=FAILURE_TTL,
    )


def enqueue_preload(redis: Redis, app: str, *, seconds: float = 300, limit: float = 600) -> None:
    """Ask a worker to preload an app."""
    task_queue(redis).enqueue(
        preload,
        app,
        seconds,
        limit,
        job_timeout=int(limit) + 60,
        result_ttl=RESULT_TTL,
        failure_ttl=FAILURE_TTL,
        retry=Retry(max=3),
    )


def enqueue_retention(redis: Redis) -> None:
    """Ask a worker for a retention."""
    try:
        task_queue(redis).enqueue(retention, result_ttl=RESULT_TTL, failure_ttl=FAILURE_TTL)
    except OutOfMemoryError:  # what is forgotten makes room
        log.warning("Redis is full: the clock does the retention")
        retention()


def _feeder(redis: Redis, settings: Settings) -> Feeder:
    return Feeder(
        RedisJobStore(redis),
        limits=settings.limits,
        job_ttl=settings.job_ttl,
        line_ttl=settings.result_ttl,
    )


def _store() -> RedisJobStore:
    return RedisJobStore(connect(ensure_redis(read_settings()), reply_timeout=5))
