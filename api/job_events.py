"""What becomes of jobs and apps, as Redis tells it: one subscription for all who wait or watch.

Waiting costs Redis nothing: no connection and no polling of one's own.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any

from redis.asyncio.client import PubSub
from redis.exceptions import (
    ConnectionError,  # noqa: A004 (redis-py's own name)
    RedisError,
)

from api.registry import Registry
from api.viewers import AWAY, Viewers
from sdserve import keys
from sdserve.async_store import connect_async
from sdserve.errors import JobExpiredError, JobNotFoundError, StoreUnavailableError
from sdserve.news import Change, read_news
from sdserve.operations import Seen

log = logging.getLogger(__name__)

SILENCE = 1.0  # seconds after which Redis is asked whether it is there, and again until it is not
RETRY_INTERVAL = 0.5  # seconds
PATIENCE = 10.0  # seconds that a Redis may be away before those who wait are told

Looking = Callable[[str], Awaitable[Seen]]
End = asyncio.Future[Seen | None]  # of a job; None: whoever waits is to look himself


class JobEvents:
    """Wakes whoever waits for the end of a job, tells the viewers and the registry what is new."""

    def __init__(self, redis_url: str, look: Looking, viewers: Viewers, registry: Registry) -> None:
        self._redis_url = redis_url
        self._look = look
        self._viewers = viewers
        self._registry = registry
        self._waiting: defaultdict[str, set[End]] = defaultdict(set)
        self._telling = set[asyncio.Task[None]]()
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
            seen = await self._look(job_id)
            return seen if seen.job.status.is_final else await self.outcome(job_id, end, seconds)

    async def outcome(self, job_id: str, end: End, seconds: float) -> Seen:
        """As `wait`, of a job whose end was expected from before it could come."""
        await asyncio.wait({end}, timeout=seconds)
        ended = end.result() if end.done() else None
        return ended or await self._look(job_id)

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
                except (RedisError, OSError, StoreUnavailableError) as error:
                    log.warning("job events interrupted (%s): listening again soon", error)
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
                for job_id in self._waiting:
                    self._tell_soon(job_id)
            elif message["type"] == "pmessage":
                news = read_news(message["channel"], message["data"])
                self._viewers.hear(news)
                if news.change is Change.ENDED:
                    self._tell_soon(news.job_id)
                elif news.change is Change.DEPLOYED:
                    self._registry.forget(news.app)

    def _tell_soon(self, job_id: str) -> None:
        """One look for all who wait for this job; meanwhile others are heard of."""
        if job_id in self._waiting:
            task = asyncio.create_task(self._tell(job_id))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _tell(self, job_id: str) -> None:
        while job_id in self._waiting:
            try:
                seen = await self._look(job_id)
            except (JobNotFoundError, JobExpiredError):
                self._wake(job_id, None)
            except StoreUnavailableError as error:
                log.warning("%s may have ended: looking again soon (%s)", job_id, error)
                await asyncio.sleep(RETRY_INTERVAL)
                continue
            else:
                if seen.job.status.is_final:
                    self._wake(job_id, seen)
            return

    def _wake(self, job_id: str, seen: Seen | None) -> None:
        for end in self._waiting.get(job_id, ()):
            if not end.done():
                end.set_result(seen)
