"""The job store of the HTTP edge: operations run on Redis by an asyncio client.

Thousands of requests share a few connections, and a Redis that is away is known within a second.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

from redis import asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import (
    NoScriptError,
    TimeoutError,  # noqa: A004 (redis-py's own name)
)

from sdserve import keys
from sdserve.apps import AppSpec, AppStatus
from sdserve.checkpoints import ModelFile
from sdserve.errors import SdServeError, StoreFullError, StoreUnavailableError
from sdserve.generation import MAX_IMAGES
from sdserve.operations import Look, Operation, Seen, ViewApp, script_text
from sdserve.operations.wire import texts
from sdserve.store import apps_of, digest_of, store_errors
from sdserve.usage import DayUsage, UsageFilter, read_day

Reply = TypeVar("Reply")

# Seconds for one operation with its connection and its retry: with the rest of a request, a client
# hears of a Redis that is away within one.
ANSWER_LIMIT = 0.8
IMAGES_LIMIT = 10.0  # seconds; tens of megabytes over a network
# Beyond so many, more connections make nothing faster: Redis and this process have a thread each.
CONNECTIONS = 16
SLICES = 8  # of a time limit
# Of usage, in one round trip: days whose fields are named, and days and fields that are searched.
DAYS_READ, DAYS_SEARCHED, FIELDS_SEARCHED = 50, 8, 1000


def connect_async(url: str, *, limit: float = IMAGES_LIMIT) -> "aioredis.Redis":
    """An asyncio client with one retry; `limit` seconds for a connection and for each reply."""
    return aioredis.Redis.from_url(
        url,
        socket_connect_timeout=limit,
        socket_timeout=limit,
        retry=Retry(ExponentialBackoff(cap=0.1, base=0.02), 1),
    )


class AsyncJobStore:
    """The job store over an asyncio client. Every call raises StoreUnavailableError.

    Calls take turns on the connections. While Redis is away, those that had to wait for their turn
    do not try it again one after the other.
    """

    def __init__(self, redis: "aioredis.Redis") -> None:
        self._redis = redis
        self._scripts: dict[str, AsyncScript] = {}
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._is_away = False  # as the latest call found it

    async def run(self, operation: Operation[Reply]) -> Reply:
        """Run one operation."""
        name = operation.script
        if name not in self._scripts:
            self._scripts[name] = self._redis.register_script(script_text(name))
        script = self._scripts[name]
        reply = await self._ask(lambda: script(keys=operation.keys, args=operation.arguments))
        return operation.read(reply)

    async def run_all(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        """Run operations that may be repeated, in one round trip.

        Returns:
            For each its reply, or its own SdServeError: the job is unknown, the store is full.
        """
        if not operations:
            return []
        outcomes, _ = await self._run_all(operations)
        return outcomes

    async def look_at_end(self, job_id: str) -> Seen:
        """A job that has just ended, with its images in the same round trip.

        Those of a later attempt have names that are not known before: they do not come along.
        """
        names = [keys.result(job_id, 1, image) for image in range(MAX_IMAGES)]
        (seen,), blobs = await self._run_all([Look(job_id=job_id)], names, limit=IMAGES_LIMIT)
        if isinstance(seen, SdServeError):
            raise seen
        found = dict(zip(names, blobs, strict=True))
        if not found.keys() >= set(seen.job.result_keys):
            return seen
        return replace(seen, results=tuple(found[name] for name in seen.job.result_keys))

    async def _run_all(
        self,
        operations: Sequence[Operation[Any]],
        images: Sequence[str] = (),
        limit: float = ANSWER_LIMIT,
    ) -> tuple[list[Any], list[bytes | None]]:
        """As `run_all`, and the images behind these keys as they are after the operations."""
        loaded = {name: script_text(name) for name in {each.script for each in operations}}
        digests = {name: digest_of(text) for name, text in loaded.items()}

        async def ask(*, load: bool) -> list[Any]:
            async with self._redis.pipeline(transaction=False) as pipe:
                for text in loaded.values() if load else ():
                    pipe.script_load(text)
                for each in operations:
                    names, arguments = each.keys, each.arguments
                    pipe.evalsha(digests[each.script], len(names), *names, *arguments)
                if images:
                    pipe.mget(list(images))
                replies = await pipe.execute(raise_on_error=False)
            return replies[len(loaded) :] if load else replies

        replies = await self._ask(lambda: ask(load=False), limit)
        if any(isinstance(reply, NoScriptError) for reply in replies):
            replies = await self._ask(lambda: ask(load=True), limit)
        outcomes = list(map(_outcome, operations, replies))
        return outcomes, _sound(replies[len(operations)]) if images else []

    async def results(self, names: Sequence[str]) -> list[bytes | None]:
        """The images behind these keys; None for one that has expired."""
        if not names:
            return []
        return await self._ask(lambda: self._redis.mget(list(names)), limit=IMAGES_LIMIT)

    async def apps(self) -> dict[str, AppSpec]:
        """What is deployed, by name."""
        found: dict[bytes, bytes] = await self._ask(lambda: self._redis.hgetall(keys.APPS))
        return {name.decode(): _spec(text) for name, text in sorted(found.items())}

    async def count_apps(self) -> int:
        """How many are deployed."""
        return await self._ask(lambda: self._redis.hlen(keys.APPS))

    async def app(self, name: str) -> AppSpec | None:
        """What is deployed under this name."""
        text: bytes | None = await self._ask(lambda: self._redis.hget(keys.APPS, name))
        return None if text is None else _spec(text)

    async def unfinished(self) -> list[str]:
        """The apps that have jobs which have not ended, deployed or not."""
        return apps_of(await self._ask(lambda: self._redis.hkeys(keys.LOAD)))

    async def has_had(self, client: str, job_id: str) -> bool:
        """Whether this job is, or was, a client's; for as long as an index remembers it."""
        name = keys.MINE + client
        score: float | None = await self._ask(lambda: self._redis.zscore(name, job_id))
        return score is not None

    async def ask(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """The outcome of any other call on this Redis, with the same patience."""
        return await self._ask(call)

    async def usage(
        self, days: Sequence[int], wanted: UsageFilter
    ) -> AsyncGenerator[list[DayUsage]]:
        """The rows of these days (since 1970), a few days at a time.

        Named fields cost a look each; a search goes through a day's fields, a part in one go, so
        that nothing else waits long for Redis.
        """
        names, step = wanted.fields, DAYS_READ if wanted.fields else DAYS_SEARCHED
        for start in range(0, len(days), step):
            part = days[start : start + step]
            found = await (self._read(part, names) if names else self._search(part, wanted.pattern))
            yield [row for day in part for row in read_day(day, found[day])]

    async def _read(self, days: Sequence[int], names: list[str]) -> dict[int, dict[str, int]]:
        async def ask() -> list[Any]:
            async with self._redis.pipeline(transaction=False) as pipe:
                for day in days:
                    pipe.hmget(f"{keys.USAGE}{day}", names)
                return await pipe.execute()

        replies: list[list[bytes | None]] = await self._ask(ask)
        return {
            day: {name: int(amount) for name, amount in zip(names, reply, strict=True) if amount}
            for day, reply in zip(days, replies, strict=True)
        }

    async def _search(self, days: Sequence[int], pattern: str) -> dict[int, dict[str, int]]:
        found: dict[int, dict[str, int]] = {day: {} for day in days}
        cursors = dict.fromkeys(days, 0)

        async def ask() -> list[Any]:
            async with self._redis.pipeline(transaction=False) as pipe:
                for day, cursor in cursors.items():
                    pipe.hscan(f"{keys.USAGE}{day}", cursor, match=pattern, count=FIELDS_SEARCHED)
                return await pipe.execute()

        while cursors:
            replies: list[tuple[int, dict[bytes, bytes]]] = await self._ask(ask)
            for day, (cursor, amounts) in zip(list(cursors), replies, strict=True):
                # A field may come twice; it is the same one.
                found[day].update({name.decode(): int(n) for name, n in amounts.items()})
                cursors[day] = cursor
            cursors = {day: cursor for day, cursor in cursors.items() if cursor}
        return found

    async def sha256s(self, files: Sequence[ModelFile]) -> list[str | None]:
        """The SHA-256 of each file in hexadecimal, where it is known yet."""
        if not files:
            return []
        names = list(map(str, files))
        return texts(await self._ask(lambda: self._redis.hmget(keys.SHA256, names)))

    async def statuses(self, apps: Sequence[str]) -> list[AppStatus]:
        """The state of several apps in one round trip."""
        return await self.run_all([ViewApp(app=app) for app in apps])

    async def _ask(self, call: Callable[[], Awaitable[Any]], limit: float = ANSWER_LIMIT) -> Any:
        has_waited = self._turns.locked()
        async with self._turns:
            if has_waited and self._is_away:
                raise StoreUnavailableError("Redis does not answer: retry soon.")
            try:
                with store_errors():
                    reply = await _within(limit, call())
            except StoreFullError:
                raise
            except StoreUnavailableError:
                self._is_away = True
                raise
            self._is_away = False
            return reply


@lru_cache(maxsize=4096)
def _spec(text: bytes) -> AppSpec:
    """Read once as long as an app is the same: the gateway is asked for all of them often."""
    return AppSpec.from_json(text)


def _sound(reply: Any) -> Any:
    """A reply of a pipeline, or the error that it is."""
    with store_errors():
        if isinstance(reply, Exception):
            raise reply
        return reply


def _outcome(operation: Operation[Any], reply: Any) -> Any:
    try:
        return operation.read(_sound(reply))
    except StoreFullError as error:
        return error
    except StoreUnavailableError:
        raise
    except SdServeError as error:
        return error


async def _within(limit: float, call: Awaitable[Any]) -> Any:
    """The outcome of `call`.

    Raises:
        TimeoutError: Redis', there is none after `limit` seconds.
    """
    asking = asyncio.ensure_future(call)
    try:
        # A loop that is late, under a burst or on a starved machine, is not a Redis that is away:
        # each slice lets the loop run once more, and what has arrived be read.
        for _ in range(SLICES):
            await asyncio.wait({asking}, timeout=limit / SLICES)
            if asking.done():
                return asking.result()
        raise TimeoutError(f"no answer within {limit} s")
    finally:
        asking.cancel()
