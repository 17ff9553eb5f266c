"""The job store: operations run on Redis by a blocking client.

Replicas, tasks and commands block; the HTTP edge does not (async_store.py). All policy is in the
operations and their scripts; this is the I/O.
"""

import hashlib
import json
import os
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from functools import cache
from typing import Any, Protocol, TypeVar

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,  # noqa: A004 (redis-py's own name)
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    TimeoutError,  # noqa: A004 (as above)
)
from redis.retry import Retry

from sdserve import keys
from sdserve.apps import AppSpec, AppStatus, LoadPace
from sdserve.checkpoints import ModelFile
from sdserve.errors import StoreFullError, StoreUnavailableError
from sdserve.news import APP_CHANGED, APP_DEPLOYED
from sdserve.operations import Drain, Ending, Finish, Operation, ViewApp, script_text
from sdserve.operations.wire import texts

Reply = TypeVar("Reply")

# A first connection costs several round trips; a dead server must be noticed within a second.
CONNECT_TIMEOUT = 0.5  # seconds
REPLY_TIMEOUT = 1.0  # seconds
UNCLAIMED_RESULT_TTL = timedelta(minutes=5)  # of a blob whose finish never came: it vanishes alone


def connect(url: str, *, reply_timeout: float = REPLY_TIMEOUT) -> Redis:
    """A blocking client with short time-outs and one retry."""
    return Redis.from_url(
        url,
        socket_connect_timeout=CONNECT_TIMEOUT,
        socket_timeout=reply_timeout,
        health_check_interval=30,
        retry=Retry(ExponentialBackoff(cap=0.1, base=0.02), 1),
    )


@contextmanager
def store_errors() -> Generator[None]:
    """Redis' ways of being away, as our one error."""
    try:
        yield
    except OutOfMemoryError as error:
        message = "Redis is full: wait until results expire, or raise its maxmemory."
        raise StoreFullError(message) from error
    except AuthenticationError as error:
        message = "Redis refuses the password in REDIS_URL: correct it."
        raise StoreUnavailableError(message) from error
    except BusyLoadingError as error:
        raise StoreUnavailableError("Redis is still loading its data: retry soon.") from error
    except NoScriptError as error:  # flushed again between redis-py's loading and calling it
        raise StoreUnavailableError("Redis keeps forgetting our scripts: retry soon.") from error
    except ReadOnlyError as error:
        message = "Redis is a read-only replica: REDIS_URL must name the primary."
        raise StoreUnavailableError(message) from error
    except (ConnectionError, TimeoutError) as error:
        message = (
            f"Redis does not answer ({error}): check that it runs and that REDIS_URL is right."
        )
        raise StoreUnavailableError(message) from error


class JobStore(Protocol):
    """Any job store, for those who need no more of it than this."""

    def run(self, operation: Operation[Reply]) -> Reply: ...

    def apps(self) -> dict[str, AppSpec]: ...


class _Own(threading.local):
    """A thread's own connection."""

    redis: Redis | None = None
    process: int = 0  # that opened it: a fork must not share it


class RedisJobStore:
    """The job store over a blocking client. Safe to share between threads."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._own = _Own()

    def run(self, operation: Operation[Reply]) -> Reply:
        """Run one operation.

        Raises:
            StoreUnavailableError: Redis is away or full.
        """
        with store_errors():
            reply = self._call(operation)
        return operation.read(reply)

    def _call(self, operation: Operation[Any]) -> Any:
        # A connection of the thread's own: to fetch one from the pool, look whether it is clean and
        # put it back takes redis-py as long as the call itself.
        own = self._own
        if own.redis is None or own.process != os.getpid():
            own.redis, own.process = self._redis.client(), os.getpid()
        redis, text = own.redis, script_text(operation.script)
        names = operation.keys
        call: list[Any] = [digest_of(text), len(names), *names, *operation.arguments]
        try:
            try:
                return redis.evalsha(*call)
            except NoScriptError:
                redis.script_load(text)
                return redis.evalsha(*call)
        except BaseException:
            # A reply may be on its way still, and the pool sees only one that has arrived: the next
            # command would take it for its own.
            own.redis = None
            if redis.connection is not None:
                redis.connection.disconnect()
            redis.close()
            raise

    def app_status(self, app: str) -> AppStatus:
        return self.run(ViewApp(app=app))

    def finish(self, finish: Finish, images: Sequence[bytes]) -> Ending:
        """Store the images of an attempt and end its job, in one round trip.

        Raises:
            StoreFullError: there was no room for them, so the job has not ended.
            StoreUnavailableError: Redis is away.
        """
        names, digest = finish.keys, digest_of(script_text(finish.script))
        with store_errors(), self._redis.pipeline(transaction=False) as pipe:
            for name, image in zip(finish.result_keys, images, strict=True):
                # Not over itself: sent again after a lost reply it would expire too soon.
                pipe.set(name, image, ex=UNCLAIMED_RESULT_TTL, nx=True)
            pipe.evalsha(digest, len(names), *names, *finish.arguments)
            *stored, reply = pipe.execute(raise_on_error=False)
            if isinstance(reply, NoScriptError):
                reply = self._call(finish)
            # Of an attempt that needs no images any more it does not matter that they had no room.
            if isinstance(reply, Exception) or finish.read(reply) is Ending.UNSTORED:
                for each in (*stored, reply):
                    if isinstance(each, Exception):
                        raise each
        return finish.read(reply)

    def wait_for_work(self, app: str, seconds: float) -> None:
        """Block until a job may be waiting, or for `seconds` (less than the reply time-out)."""
        with store_errors():
            self._redis.blpop([keys.WAKE + app], timeout=seconds)

    def leave(self, app: str, replica: str) -> None:
        """A replica says goodbye: at once, nobody counts on its slots."""
        with store_errors():
            self._redis.hdel(keys.REPLICAS + app, replica)
            self._redis.publish(keys.CHANNEL + app, APP_CHANGED)

    def note_load(self, app: str, load: LoadPace) -> None:
        """Remember what a start took, for the next cold ETA; it ends a run of failures."""
        with store_errors():
            self._redis.hset(keys.APP + app, "load", json.dumps(asdict(load)))
            self._redis.hdel(keys.APP + app, "load_failures")

    def count_load_failure(self, app: str) -> int:
        """One more start of this app has failed. Returns how many in a row."""
        with store_errors():
            return int(self._redis.hincrby(keys.APP + app, "load_failures", 1))

    def load_failures(self, app: str) -> int:
        """How many starts in a row have failed or died on the way."""
        with store_errors():
            return int(self._redis.hget(keys.APP + app, "load_failures") or 0)

    def heal(self, app: str) -> None:
        """Forget that an app was broken (a redeploy)."""
        with store_errors():
            self._redis.hdel(keys.APP + app, "broken", "broken_code", "load_failures")

    def drain(self, drain: Drain) -> int:
        """Fail all queued jobs of an app, a part at a time. Returns how many they were."""
        drained = 0
        while part := self.run(drain):
            drained += part
        return drained

    def unfinished(self) -> list[str]:
        """The apps that have jobs which have not ended, deployed or not."""
        with store_errors():
            return apps_of(self._redis.hkeys(keys.LOAD))

    def wish_replica(self, app: str, seconds: float) -> None:
        """Ask for a warm replica ahead of traffic, for so long."""
        with store_errors():
            now: Any = self._redis.time()
            until = int((now[0] + seconds) * 1000)
            self._redis.hset(keys.APP + app, "wish_until", str(until))

    def register_app(self, spec: AppSpec) -> None:
        device = "GPU" if spec.num_gpus else "CPU"
        size = sum(file.size for file in spec.checkpoint.files)
        facts = ["device", device, "file_bytes", str(size)]
        with store_errors(), self._redis.pipeline() as pipe:
            pipe.hset(keys.APPS, spec.name, spec.to_json())
            pipe.hset(keys.APP + spec.name, items=facts)
            pipe.publish(keys.CHANNEL + spec.name, APP_DEPLOYED)
            pipe.execute()

    def unregister_app(self, app: str) -> None:
        with store_errors(), self._redis.pipeline() as pipe:
            pipe.hdel(keys.APPS, app)
            pipe.publish(keys.CHANNEL + app, APP_DEPLOYED)
            pipe.execute()

    def apps(self) -> dict[str, AppSpec]:
        """What is deployed, by name."""
        with store_errors():
            texts: Any = self._redis.hgetall(keys.APPS)
        return {name.decode(): AppSpec.from_json(text) for name, text in sorted(texts.items())}

    def app_names(self) -> set[str]:
        """The names of what is deployed."""
        with store_errors():
            names: Any = self._redis.hkeys(keys.APPS)
        return {name.decode() for name in names}

    def sha256s(self, files: Sequence[ModelFile]) -> list[str | None]:
        """The SHA-256 of each file in hexadecimal, where it is known yet."""
        with store_errors():
            return texts(self._redis.hmget(keys.SHA256, list(map(str, files))))

    def note_sha256(self, file: ModelFile, sha256: str) -> None:
        with store_errors():
            self._redis.hset(keys.SHA256, str(file), sha256)

    def key_ids(self) -> list[str]:
        """The API keys there are, revoked ones too, the oldest first."""
        with store_errors():
            ids: Any = self._redis.zrange(keys.KEYS, 0, -1)
        return [key_id.decode() for key_id in ids]

    def note_key_required(self, *, is_required: bool) -> None:
        """Remember, for every later deployment, whether requests must show an API key."""
        with store_errors():
            self._redis.set(keys.KEY_REQUIRED, int(is_required))

    def is_key_required(self) -> bool:
        """What was noted; where nothing was, or it is lost, they must."""
        with store_errors():
            return self._redis.get(keys.KEY_REQUIRED) != b"0"

    def trim(self, *, older_than: timedelta, limit: int = 1000) -> int:
        """Forget the index entries of jobs whose record expired, once they are `older_than`.

        Until then such a job answers 410 (gone), after it 404 (unknown). Returns how many went.
        """
        with store_errors():
            now: Any = self._redis.time()
            until = (now[0] - older_than.total_seconds()) * 1000
            old: Any = self._redis.zrangebyscore(keys.INDEX, "-inf", until, start=0, num=limit)
            if not old:
                return 0
            with self._redis.pipeline(transaction=False) as pipe:
                for job_id in old:
                    pipe.exists(keys.JOB + job_id.decode())
                gone = [
                    job_id for job_id, alive in zip(old, pipe.execute(), strict=True) if not alive
                ]
            if gone:
                indexes = [
                    keys.INDEX,
                    *(keys.MINE + client for client in ("", *self.key_ids())),
                ]
                with self._redis.pipeline(transaction=False) as pipe:
                    for index in indexes:
                        pipe.zrem(index, *gone)
                    pipe.execute()
        return len(gone)


@cache
def digest_of(script: str) -> str:
    """A script's name in Redis."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def apps_of(fields: Any) -> list[str]:
    """The names of apps among the fields of `keys.LOAD`."""
    names: list[list[str]] = [field.decode().split(":", 1) for field in sorted(fields)]
    return [name[1] for name in names if name[0] == "app"]
