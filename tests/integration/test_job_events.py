"""The events of jobs over bad connections: nobody waits for an end that was told to nobody."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
from redis import Redis

from api import job_events
from api.edge import Edge
from api.job_events import JobEvents
from sdserve import keys
from sdserve.errors import JobNotFoundError, StoreUnavailableError
from sdserve.jobs import JobStatus, new_job_id
from sdserve.operations import Seen
from sdserve.store import RedisJobStore
from tests.http_app import edge_settings
from tests.looked_at import LookedAtStore
from tests.store_world import RUN_OUT, World
from tests.values import APP
from tests.waiting import LIMIT

pytestmark = pytest.mark.integration


class Relay:
    """Between the events and Redis; on request it forgets the connections that it has."""

    def __init__(self, redis_url: str) -> None:
        self._url = urlsplit(redis_url)
        self._forgotten = asyncio.Event()
        self._pumps = set[asyncio.Task[None]]()
        self.is_closed = False

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[str]:
        """The URL of Redis through here."""
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        address = f"127.0.0.1:{self._url.port}"
        try:
            yield self._url.geturl().replace(address, f"127.0.0.1:{port}")
        finally:
            server.close()
            for pump in self._pumps:
                pump.cancel()
            await asyncio.gather(*self._pumps, return_exceptions=True)

    def forget(self) -> None:
        """Pass nothing more on, and tell neither end; connections to come are well."""
        self._forgotten.set()
        self._forgotten = asyncio.Event()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_closed:
            writer.close()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._url.port)
        for source, sink in ((reader, back), (there, writer)):
            self._pumps.add(asyncio.create_task(self._pump(source, sink, self._forgotten)))

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, forgotten: asyncio.Event
    ) -> None:
        try:
            while data := await source.read(65536):
                if forgotten.is_set():
                    await asyncio.Event().wait()
                sink.write(data)
        finally:
            sink.close()


class Waiter:
    """Waits for one job, and tells when it has begun to."""

    def __init__(self, redis_url: str, events_url: str, job_id: str) -> None:
        self._edge = Edge(edge_settings(redis_url))
        self._store = LookedAtStore(redis_url)
        self._looks = self._store.looks
        self._events = JobEvents(events_url, self._store, self._edge.viewers, self._edge.registry)
        self._job_id = job_id

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["asyncio.Task[Seen]"]:
        async with self._store, self._edge.running(), asyncio.timeout(LIMIT):
            waiting = asyncio.create_task(self._events.wait(self._job_id, 10 * LIMIT))
            await self._looks.get()  # its own
            listening = asyncio.create_task(self._events.listen())
            await self._looks.get()  # that of the new subscription
            yield waiting
            self._events.stop()
            listening.cancel()
            await asyncio.wait([listening])


@pytest.fixture
def world(redis: Redis) -> World:
    return World(RedisJobStore(redis), redis)


async def test_a_connection_that_dies_without_a_word_is_noticed(
    redis_url: str, world: World
) -> None:
    """As behind a firewall that forgets it."""
    job_id = world.submit().job_id
    relay = Relay(redis_url)
    async with relay.running() as url, Waiter(redis_url, url, job_id).running() as waiting:
        relay.forget()
        world.cancel(job_id)
        assert (await waiting).job.status is JobStatus.CANCELLED


async def test_who_waits_is_told_when_redis_stays_away(
    redis_url: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_events, "PATIENCE", 0.5)
    job_id = world.submit().job_id
    relay = Relay(redis_url)
    async with relay.running() as url, Waiter(url, url, job_id).running() as waiting:
        relay.is_closed = True
        relay.forget()
        with pytest.raises(StoreUnavailableError):
            await waiting


async def test_who_waits_for_a_job_that_vanishes_is_told(
    redis_url: str, redis: Redis, world: World
) -> None:
    job_id = world.submit().job_id
    relay = Relay(redis_url)
    async with relay.running() as url, Waiter(redis_url, url, job_id).running() as waiting:
        redis.flushdb()
        relay.forget()
        with pytest.raises(JobNotFoundError):
            await waiting


async def test_an_end_that_comes_before_the_wait_for_it_is_not_missed(
    redis_url: str, world: World
) -> None:
    edge, job_id = Edge(edge_settings(redis_url)), new_job_id()
    async with edge.running(), asyncio.timeout(LIMIT):
        with edge.expecting(job_id) as end:
            world.submit(job_id=job_id)
            world.cancel(job_id)
            heard = await end
            waited = await edge.wait(job_id, 10 * LIMIT, end)
    assert heard is waited
    assert waited.job.status is JobStatus.CANCELLED


async def test_a_job_expected_before_it_exists_is_waited_for_also_over_a_new_subscription(
    redis_url: str, world: World
) -> None:
    edge, job_id = Edge(edge_settings(redis_url)), new_job_id()
    store = LookedAtStore(redis_url)
    events = JobEvents(redis_url, store, edge.viewers, edge.registry)
    async with store, edge.running(), asyncio.timeout(LIMIT), asyncio.TaskGroup() as tasks:
        with events.expecting(job_id) as end:
            listening = tasks.create_task(events.listen())
            assert isinstance(await store.looks.get(), JobNotFoundError)  # of the subscription
            await end
            world.submit(job_id=job_id)
            waiting = tasks.create_task(events.outcome(job_id, end, 10 * LIMIT))
            assert (await store.looks.get()).job.status is JobStatus.QUEUED
            world.cancel(job_id)
            assert (await waiting).job.status is JobStatus.CANCELLED
        events.stop()
        listening.cancel()


async def test_a_message_that_a_later_version_sends_ends_no_listening(
    redis_url: str, redis: Redis, world: World
) -> None:
    job_id = world.submit().job_id
    relay = Relay(redis_url)
    async with relay.running() as url, Waiter(redis_url, url, job_id).running() as waiting:
        redis.publish(keys.CHANNEL + APP, f"{job_id} painted")
        redis.publish(keys.CHANNEL + APP, " painted")
        world.cancel(job_id)
        assert (await waiting).job.status is JobStatus.CANCELLED


async def test_the_look_at_an_end_brings_the_images_whatever_the_attempt(
    redis_url: str, world: World
) -> None:
    edge, images = Edge(edge_settings(redis_url)), [b"one", b"two"]
    world.submit()
    first = world.claim()
    world.succeed(first, images)
    world.submit()
    world.claim(RUN_OUT)
    world.reap()
    second = world.claim()
    world.succeed(second, images)
    async with edge.running(), asyncio.timeout(LIMIT):
        for job, comes_along in ((first, True), (second, False)):
            seen = await edge.store.look_at_end(job.id)
            assert seen.results == (tuple(images) if comes_along else None)
            assert [image.data for image in await edge.images(seen)] == images
