"""What every HTTP application does with the job store: submit, look, wait, collect."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta

from redis import asyncio as aioredis
from redis.exceptions import RedisError

from sdserve import keys
from sdserve.apps import AppStatus
from sdserve.errors import JobExpiredError, JobNotFoundError, StoreUnavailableError
from sdserve.generation import EncodedImage
from sdserve.jobs import Job, JobStatus, is_job_id
from sdserve.limits import Limits
from sdserve.operations import Reap, ViewApp, ViewJob
from sdserve.store import AsyncJobStore, connect_async

log = logging.getLogger(__name__)

# A lost pub/sub message (a Redis restart) must cost a look, never a hang.
SAFETY_LOOK = 2.0  # seconds
REAP_INTERVAL = 1.0  # seconds


@dataclass(frozen=True, kw_only=True)
class EdgeSettings:
    """What an HTTP application needs to know of its surroundings."""

    redis_url: str
    job_ttl: timedelta
    sync_wait: timedelta  # how long a synchronous request is held before it becomes a 202
    limits: Limits = field(default_factory=Limits)


class Edge:
    """The store, and one subscription that wakes whoever waits for a job."""

    def __init__(self, settings: EdgeSettings) -> None:
        self.settings = settings
        self._redis = connect_async(settings.redis_url)
        self.store = AsyncJobStore(self._redis)
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._stopped = False

    @asynccontextmanager
    async def running(self, app: str | None = None) -> AsyncGenerator[None]:
        """Listen, and take back run-out leases of `app` (None: of all), while we serve."""
        tasks = [
            asyncio.create_task(self._listen(), name="events"),
            asyncio.create_task(self._reap(app), name="reap"),
        ]
        try:
            yield
        finally:
            # redis-py may turn a cancel into a time-out of its own, so the loops look at this too.
            self._stopped = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._redis.aclose()

    async def job(self, job_id: str) -> Job:
        """A job as it stands.

        Raises:
            JobNotFoundError, JobExpiredError, StoreUnavailableError.
        """
        if not is_job_id(job_id):
            raise JobNotFoundError(job_id)
        return await self.store.run(ViewJob(job_id=job_id))

    async def wait(self, job_id: str, seconds: float) -> Job:
        """The job once it is final, or as it stands after `seconds`."""
        deadline = asyncio.get_running_loop().time() + seconds
        changed = asyncio.Event()
        # Registered before the look: an end between the two would be missed otherwise.
        self._waiting[job_id].add(changed)
        try:
            while True:
                changed.clear()
                job = await self.job(job_id)
                left = deadline - asyncio.get_running_loop().time()
                if job.status.is_final or left <= 0:
                    return job
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), min(left, SAFETY_LOOK))
        finally:
            self._waiting[job_id].discard(changed)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def app_of(self, job: Job) -> AppStatus | None:
        """The state of the job's app while that matters to the job."""
        return None if job.status.is_final else await self.store.run(ViewApp(app=job.app))

    async def images(self, job: Job) -> list[EncodedImage]:
        """The pictures of a succeeded job; none once they have expired."""
        blobs = await self.store.results(job.result_keys)
        media_type = job.params.format.media_type
        return [
            EncodedImage(data=blob, media_type=media_type, seed=seed)
            for blob, seed in zip(blobs, job.image_seeds, strict=True)
            if blob is not None
        ]

    async def image(self, job_id: str, number: int) -> EncodedImage:
        """Picture `number` of a job.

        Raises:
            JobNotFoundError: no such job, or it has no such picture (yet).
            JobExpiredError: it had one.
        """
        job = await self.job(job_id)
        if job.status is not JobStatus.SUCCEEDED or number >= len(job.result_keys):
            raise JobNotFoundError(f"{job_id}/image/{number}")
        blobs = await self.store.results([job.result_keys[number]])
        if blobs[0] is None:
            raise JobExpiredError(job_id)
        media_type = job.params.format.media_type
        return EncodedImage(data=blobs[0], media_type=media_type, seed=job.image_seeds[number])

    async def _listen(self) -> None:
        # A connection of its own without a reply time-out: silence is normal on it.
        redis = connect_async(self.settings.redis_url, reply_timeout=None)
        try:
            while not self._stopped:
                try:
                    await self._wake_waiters(redis)
                except (RedisError, OSError) as error:
                    log.warning("job events interrupted (%s); listening again in 0.5 s", error)
                    await asyncio.sleep(0.5)
        finally:
            await redis.aclose()

    async def _wake_waiters(self, redis: "aioredis.Redis") -> None:
        async with redis.pubsub(ignore_subscribe_messages=True) as events:
            await events.psubscribe(keys.CHANNEL + "*")
            async for message in events.listen():
                for waiter in self._waiting.get(message["data"].decode(), ()):
                    waiter.set()

    async def _reap(self, only: str | None) -> None:
        """Replicas reap too; the edge does it when an app has none left, or is deleted."""
        while not self._stopped:
            await asyncio.sleep(REAP_INTERVAL)
            try:
                for app in [only] if only else await self.store.unfinished():
                    reaped = await self.store.run(Reap(app=app, job_ttl=self.settings.job_ttl))
                    if reaped.requeued or reaped.ended:
                        log.warning("%s: leases ran out: %s", app, reaped)
            except (StoreUnavailableError, RedisError) as error:
                log.warning("no reaping now: %s", error)
