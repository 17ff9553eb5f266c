"""What every HTTP application does with the job store: submit, look, wait, collect."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta

from starlette.types import Receive

from api.caller import Caller, Callers
from api.hang_up import ClientGoneError, unless_gone
from api.held import HeldRequests
from api.job_events import End, JobEvents
from api.rate_limit import RateLimiter
from api.registry import Registry
from api.viewers import Viewers
from sdserve.async_store import AsyncJobStore, connect_async
from sdserve.errors import (
    InvalidParameterError,
    JobExpiredError,
    JobNotFoundError,
    StoreUnavailableError,
)
from sdserve.generation import EncodedImage
from sdserve.host_names import HostNames
from sdserve.jobs import Job, JobStatus, is_job_id
from sdserve.limits import Limits
from sdserve.operations import Cancel, Look, Reap, Seen
from sdserve.webhook_targets import WebhookTargets

log = logging.getLogger(__name__)

LOOK_INTERVAL = 1.0  # seconds


@dataclass(frozen=True, kw_only=True)
class EdgeSettings:
    """What an HTTP application needs to know of its surroundings."""

    redis_url: str = field(repr=False)  # has a password
    job_ttl: timedelta
    sync_wait: timedelta  # how long a synchronous request is held before it becomes a 202
    is_key_required: bool = False  # an API key; who shows an invalid one is always refused
    hosts: HostNames = field(default_factory=HostNames)  # ours, beside loopback's; without keys
    webhooks: WebhookTargets | None = None  # None: they are off
    limits: Limits = field(default_factory=Limits)
    max_held: int = 5_000  # requests that one process holds open
    max_held_per_key: int = 500
    max_body_bytes: int = 2**20
    body_timeout: timedelta = timedelta(seconds=10)  # for all of a body to arrive


class Edge:
    """The store, and the events that wake whoever waits for a job: one for all of a process."""

    def __init__(self, settings: EdgeSettings) -> None:
        self.settings = settings
        self._redis = connect_async(settings.redis_url)
        self.store = AsyncJobStore(self._redis)
        self.callers = Callers(
            self.store,
            RateLimiter(self.store, self._redis.connection_pool),
            is_required=settings.is_key_required,
            quotas=settings.limits.client,
        )
        self.held = HeldRequests(most=settings.max_held, most_of_client=settings.max_held_per_key)
        self.viewers = Viewers(self.store)
        self.registry = Registry(self.store)
        self._events = JobEvents(settings.redis_url, self.store, self.viewers, self.registry)
        self._stopped = False
        self._chores = set[asyncio.Task[None]]()  # what outlives its request

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Listen, and take back run-out leases, while we serve."""
        tasks = [
            asyncio.create_task(self._events.listen(), name="events"),
            asyncio.create_task(self.viewers.run(), name="viewers"),
            asyncio.create_task(self._look_after(), name="look after"),
        ]
        try:
            yield
        finally:
            # redis-py may turn a cancel into a time-out of its own, so the loops look at this too.
            self._stopped = True
            self._events.stop()
            self.viewers.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, *self._chores, return_exceptions=True)
            await self._redis.aclose()

    def webhook(self, url: str | None) -> str | None:
        """The field `webhook` of a request, checked.

        Raises:
            InvalidParameterError: webhooks are off, or none goes there.
        """
        if url is None:
            return None
        if self.settings.webhooks is None:
            message = (
                "webhooks are off: leave it out and poll the job, or have the operator set "
                "SD_WEBHOOK_SECRETS (docs/operations.md)"
            )
            raise InvalidParameterError("webhook", message)
        return str(self.settings.webhooks.check(url))

    async def look(self, job_id: str) -> Seen:
        """A job as it stands.

        Raises:
            JobNotFoundError, JobExpiredError, StoreUnavailableError.
        """
        if not is_job_id(job_id):
            raise JobNotFoundError(job_id)
        return await self.store.run(Look(job_id=job_id))

    async def look_of(self, caller: Caller, job_id: str) -> Seen:
        """As `look`; another's does not exist, also when it has expired."""
        try:
            seen = await self.look(job_id)
            caller.see(seen.job)
            return seen
        except JobExpiredError:
            if caller.is_admin or await self.store.has_had(caller.client, job_id):
                raise
            raise JobNotFoundError(job_id) from None

    def limits_of(self, caller: Caller) -> Limits:
        """What a submission of this caller must not exceed."""
        return replace(self.settings.limits, client=caller.quotas)

    def expecting(self, job_id: str) -> AbstractContextManager[End]:
        """Hear of the end of this job from now on, also when it does not exist yet."""
        return self._events.expecting(job_id)

    async def wait(self, job_id: str, seconds: float, end: End | None = None) -> Seen:
        """The job once it is final, or as it stands after `seconds`.

        Args:
            job_id: of a job that exists.
            seconds: to wait.
            end: if it was expected from before it existed: then no look comes first.
        """
        if end is None:
            return await self._events.wait(job_id, seconds)
        return await self._events.outcome(job_id, end, seconds)

    async def wait_for(
        self, receive: Receive, app: str, job_id: str, seconds: float, end: End | None = None
    ) -> Seen:
        """As `wait`, for a client who alone wants the job: it is cancelled when he hangs up.

        Raises:
            ClientGoneError: he did.
        """
        try:
            return await unless_gone(receive, self.wait(job_id, seconds, end))
        except (ClientGoneError, asyncio.CancelledError):
            # Serve's proxy cancels this very task: what is left to do needs one of its own.
            chore = asyncio.create_task(self._cancel(app, job_id))
            self._chores.add(chore)
            chore.add_done_callback(self._chores.discard)
            raise

    async def _cancel(self, app: str, job_id: str) -> None:
        cancel = Cancel(app=app, job_id=job_id, job_ttl=self.settings.job_ttl)
        try:
            was = await self.store.run(cancel)
        except StoreUnavailableError as error:
            log.warning("%s: its client hung up, it runs on: %s", job_id, error)
        else:
            log.info("%s: its client hung up while it was %s: cancelled", job_id, was)

    async def images(self, seen: Seen) -> list[EncodedImage]:
        """The pictures of a succeeded job; none once they have expired."""
        job, blobs = seen.job, seen.results
        if blobs is None:
            blobs = await self.store.results(job.result_keys)
        media_type = job.params.format.media_type
        return [
            EncodedImage(data=blob, media_type=media_type, seed=seed)
            for blob, seed in zip(blobs, job.image_seeds, strict=True)
            if blob is not None
        ]

    async def image(self, job: Job, number: int) -> EncodedImage:
        """Picture `number` of a job.

        Raises:
            JobNotFoundError: it has no such picture (yet).
            JobExpiredError: it had one.
        """
        if job.status is not JobStatus.SUCCEEDED or number >= len(job.result_keys):
            raise JobNotFoundError(f"{job.id}/image/{number}")
        blobs = await self.store.results([job.result_keys[number]])
        if blobs[0] is None:
            raise JobExpiredError(job.id)
        media_type = job.params.format.media_type
        return EncodedImage(data=blobs[0], media_type=media_type, seed=job.image_seeds[number])

    async def _look_after(self) -> None:
        """See what is deployed, should nobody say; and take leases back.

        Replicas do that too, but an app may have none left, or be deleted.
        """
        while not self._stopped:
            await asyncio.sleep(LOOK_INTERVAL)
            try:
                await self.registry.refresh()
                apps = await self.store.unfinished()
            except StoreUnavailableError as error:
                log.warning("no looking after jobs now: %s", error)
            except Exception:  # the next time comes
                log.exception("no looking after jobs now")
            else:
                for app in apps:
                    await self._reap(app)

    async def _reap(self, app: str) -> None:
        try:
            reaped = await self.store.run(Reap(app=app, job_ttl=self.settings.job_ttl))
        except StoreUnavailableError as error:
            log.warning("%s: leases are not looked at now: %s", app, error)
        except Exception:  # the others' have their turn
            log.exception("%s: leases are not looked at", app)
        else:
            if reaped.requeued or reaped.ended:
                log.warning("%s: leases ran out: %s", app, reaped)
