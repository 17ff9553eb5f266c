"""What becomes of jobs and apps, as Redis tells it: one subscription for all who wait or watch.

Waiting costs Redis nothing: no connection and no polling of one's own.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Coroutine, Generator, Iterable
from contextlib import contextmanager
from typing import Any

from redis.asyncio.client import PubSub
from redis.exceptions import (
    ConnectionError,  # noqa: A004 (redis-py's own name)
    RedisError,
)

from api.registry import Registry
from api.viewers import AWAY, Viewers, in_parts
from sdserve import keys
from sdserve.async_store import AsyncJobStore, connect_async
from sdserve.errors import SdServeError, StoreUnavailableError
from sdserve.jobs import Job
from sdserve.news import Change, read_news
from sdserve.operations import Look, Seen, ViewJob

log = logging.getLogger(__name__)

SILENCE = 1.0  # seconds after which Redis is asked whether it is there, and again until it is not
RETRY_INTERVAL = 0.5  # seconds
PATIENCE = 10.0  # seconds that a Redis may be away before those who wait are told
PICTURES = 4  # ends whose pictures are fetched at once: requests need connections too

End = asyncio.Future[Seen | None]  # of a job; None: whoever waits is to look himself


class JobEvents:
    """Wakes whoever waits for the end of a job, tells the viewers and the registry what is new."""

    def __init__(
        self, redis_url: str, store: AsyncJobStore, viewers: Viewers, registry: Registry
    ) -> None:
        self._redis_url = redis_url
        self._store = store
        self._viewers = viewers
        self._registry = registry
        self._waiting: defaultdict[str, set[End]] = defaultdict(set)
        self._telling = set[asyncio.Task[None]]()
        self._fetching = asyncio.Semaphore(PICTURES)
        self._stopped = False
        self._heard = 0.0  # when Redis was there, by the loop's clock

    @contextmanager
    def expecting(self, job_id: str) -> Generator[End]:
        """Hear of the end of this job from now on, also when it does not exist yet."""
        end: End = asyncio.get_running_loop().create_future()
        self._waiting[job_id].add(end)
        try:
            yield end
        finally:
            self._waiting[job_id].discard(end)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def wait(self, job_id: str, seconds: float) -> Seen:
        """The job once it is final, or as it stands after `seconds`.

        While Redis is away for a moment this waits on: the job lives, and so may Redis soon.
        """
        # Before the look: an end between the two would be missed otherwise.
        with self.expecting(job_id) as end:
            seen = await self._store.run(Look(job_id=job_id))
            if seen.job.status.is_final or seconds <= 0:
                return seen
            return await self.outcome(job_id, end, seconds)

    async def outcome(self, job_id: str, end: End, seconds: float) -> Seen:
        """As `wait`, of a job whose end was expected from before it could come."""
        now = asyncio.get_running_loop().time
        until = now() + seconds
        await asyncio.wait({end}, timeout=seconds)
        ended = end.result() if end.done() else None
        return ended or await self.wait(job_id, until - now())

    async def listen(self) -> None:
        """Follow the events until `stop`, over restarts of Redis and dead connections."""
        redis = connect_async(self._redis_url, limit=SILENCE)
        clock = asyncio.get_running_loop().time
        self._heard = clock()
        try:
            while not self._stopped:
                try:
                    async with redis.pubsub() as events:
                        await self._follow(events)
                except Exception as error:
                    # Without this task nobody would be woken: whatever it was, listen again.
                    is_away = isinstance(error, RedisError | OSError | StoreUnavailableError)
                    log.warning(
                        "job events interrupted (%s): listening again soon", error,
                        exc_info=not is_away,
                    )  # fmt: skip
                    self._viewers.tell(AWAY)
                    self._registry.lose()
                    if clock() - self._heard > PATIENCE:
                        for job_id in list(self._waiting):
                            self._wake(job_id, None)
                    await asyncio.sleep(RETRY_INTERVAL)
        finally:
            for task in self._telling:
                task.cancel()
            await asyncio.gather(*self._telling, return_exceptions=True)
            await redis.aclose()

    def stop(self) -> None:
        """Let `listen` end. For its task's cancel alone redis-py may take it for a time-out."""
        self._stopped = True

    async def _follow(self, events: PubSub) -> None:
        await events.psubscribe(f"{keys.CHANNEL}*")
        is_asked = False
        while not self._stopped:
            message: dict[str, Any] | None = await events.get_message(timeout=SILENCE)
            if message is None:
                # A connection whose other end is gone without a word looks like silence.
                if is_asked:
                    raise ConnectionError("Redis is silent")
                await events.ping()
                is_asked = True
                continue
            is_asked = False
            self._heard = asyncio.get_running_loop().time()
            if message["type"] == "psubscribe":
                # What happened before this moment was told to nobody.
                self._viewers.look_again()
                self._registry.follow()
                self._soon(self._look_again(tuple(self._waiting)))
            elif message["type"] == "pmessage":
                news = read_news(message["channel"], message["data"])
                self._viewers.hear(news)
                if news.change is Change.ENDED and news.job_id in self._waiting:
                    self._soon(self._tell(news.job_id))
                elif news.change is Change.DEPLOYED:
                    self._registry.forget(news.app)

    def _soon(self, telling: Coroutine[None, None, None]) -> None:
        """Look in a task of its own; meanwhile others are heard of."""
        task = asyncio.create_task(telling)
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _look_again(self, job_ids: Iterable[str]) -> None:
        """See which of these jobs ended while nobody listened."""
        for part in in_parts(job_ids):
            looks = [ViewJob(job_id=job_id) for job_id in part]
            while True:
                try:
                    found = await self._store.run_all(looks)
                    break
                except StoreUnavailableError as error:
                    log.warning("jobs may have ended: looking again soon (%s)", error)
                    await asyncio.sleep(RETRY_INTERVAL)
            for job_id, job in zip(part, found, strict=True):
                if not isinstance(job, Job):  # gone; or on its way into the store
                    self._wake(job_id, None)
                elif job.status.is_final:
                    self._soon(self._tell(job_id))

    async def _tell(self, job_id: str) -> None:
        """One look for all who wait for this job, which has ended."""
        seen: Seen | None = None  # as it stays where the job is gone already
        while job_id in self._waiting:
            try:
                async with self._fetching:
                    seen = await self._store.look_at_end(job_id)
            except StoreUnavailableError as error:
                log.warning("%s has ended: looking again soon (%s)", job_id, error)
                await asyncio.sleep(RETRY_INTERVAL)
                continue
            except SdServeError:
                pass
            except Exception:
                log.exception("%s has ended, and could not be looked at", job_id)
            self._wake(job_id, seen)
            return

    def _wake(self, job_id: str, seen: Seen | None) -> None:
        for end in self._waiting.get(job_id, ()):
            if not end.done():
                end.set_result(seen)
