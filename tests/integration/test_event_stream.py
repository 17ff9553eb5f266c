"""A job's event stream: every state is seen, none is hidden, nobody sees what is another's."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from redis import Redis

from api import event_stream, viewers
from api.estimate import eta_seconds
from api.gateway import create_app
from sdserve import keys
from sdserve.apps import AppState, AppStatus
from sdserve.jobs import Job, JobFailure, JobStatus, Preview, new_job_id
from sdserve.store import RedisJobStore
from tests.event_client import Event, EventClient
from tests.http_app import HttpApp, edge_settings
from tests.store_world import World
from tests.values import METRICS, finish, params
from tests.waiting import LIMIT, until

pytestmark = pytest.mark.integration

LONG = timedelta(minutes=30)
FAILURE = JobFailure(code="internal_error", message="no")
PICTURE = Preview(step=3, number=0, image=b"webp")


@pytest.fixture
def world(redis: Redis) -> World:
    return World(RedisJobStore(redis), redis)


@pytest.fixture
def app(redis_url: str, redis: Redis) -> Iterator[HttpApp]:
    with HttpApp(create_app(edge_settings(redis_url))) as one:
        yield one


def url(app: HttpApp) -> str:
    return f"http://127.0.0.1:{app.port}"


def calls(redis: Redis) -> int:
    """Scripts that Redis has run so far."""
    stats: Any = redis.info("commandstats")
    return stats.get("cmdstat_evalsha", {"calls": 0})["calls"]


def test_every_step_is_seen_until_the_end(app: HttpApp, world: World) -> None:
    job_id = world.submit().job_id
    with EventClient(url(app), job_id) as stream:
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        assert stream.response.headers["cache-control"] == "no-store"
        assert next(iter(stream)).retry == 2000
        seen = [stream.job()]
        job = world.claim(LONG)
        seen.append(stream.job())
        for step in (1, 2):
            world.beat(job, step=step)
            seen.append(stream.job())
        world.succeed(job)
        seen.append(stream.job())
        assert list(stream) == []
    assert [event.place for event in seen] == [
        ("queued", 0, 0),
        ("running", 0, None),
        ("running", 1, None),
        ("running", 2, None),
        ("succeeded", 20, None),
    ]
    assert [event.id for event in seen] == ["1", "2", "3", "4", "5"]
    assert seen[3].data["phase"] == "step 2 of 20"


def test_an_event_is_the_job_without_its_images(app: HttpApp, world: World) -> None:
    job_id = world.submit(params=params(num_images=2)).job_id
    world.succeed(world.claim(LONG), images=[b"one", b"two"])
    with EventClient(url(app), job_id) as stream:
        event = stream.job().data
    job = app.http.get(f"/v1/jobs/{job_id}").json()
    assert job["result"]["image"]
    job["result"]["image"] = None
    del job["result"]["images"]
    assert event == job


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
def test_a_job_that_is_over_is_told_at_once(app: HttpApp, world: World, end: str) -> None:
    """Also to who has seen its end before."""
    job_id = world.submit().job_id
    if end == "cancelled":
        world.cancel(job_id)
    else:
        job = world.claim(LONG)
        fields: dict[str, Any] = {"metrics": METRICS} if end == "succeeded" else {"error": FAILURE}
        world.run(finish(job.id, job.fence, JobStatus(end), **fields))
    with EventClient(url(app), job_id) as stream:
        (event,) = [event for event in stream if event.kind]
    assert event.data["status"] == end
    with EventClient(url(app), job_id, last=event.id) as stream:
        assert [again for again in stream if again.kind] == [event]


def test_an_unknown_and_an_expired_job_are_problems(app: HttpApp, world: World) -> None:
    job_id = world.submit().job_id
    world.cancel(job_id, ttl=timedelta(0))
    for name, status in ((new_job_id(), 404), ("no-id", 404), (job_id, 410)):
        with EventClient(url(app), name) as stream:
            assert stream.response.status_code == status
            assert stream.response.headers["content-type"] == "application/problem+json"


# --- coming back ---------------------------------------------------------------------------------


def test_who_comes_back_is_told_what_he_missed_and_only_that(app: HttpApp, world: World) -> None:
    job_id = world.submit().job_id
    job = world.claim(LONG)
    world.beat(job, step=1)
    with EventClient(url(app), job_id) as stream:
        last = stream.job().id
    with EventClient(url(app), job_id, last=last) as stream:
        stream.comment("job")
        world.beat(job, step=2)
        assert stream.job().place == ("running", 2, None)  # not step 1 again
    world.beat(job, step=3)
    with EventClient(url(app), job_id, last=last) as stream:
        assert stream.job().place == ("running", 3, None)


def test_an_end_that_came_meanwhile_is_told(app: HttpApp, world: World) -> None:
    job_id = world.submit().job_id
    job = world.claim(LONG)
    with EventClient(url(app), job_id) as stream:
        last = stream.job().id
    world.succeed(job)
    with EventClient(url(app), job_id, last=last) as stream:
        assert stream.job().data["status"] == "succeeded"


def test_a_place_that_changed_meanwhile_is_told(app: HttpApp, world: World) -> None:
    """It has no version of its own."""
    world.submit()
    job_id = world.submit().job_id
    with EventClient(url(app), job_id) as stream:
        first = stream.job()
    assert first.place == ("queued", 0, 1)
    world.claim(LONG)
    with EventClient(url(app), job_id, last=first.id) as stream:
        second = stream.job()
    assert (second.place, second.id) == (("queued", 0, 0), first.id)


@pytest.mark.parametrize("last", ["99", "-1", "no number", "1.0"])
def test_an_id_of_another_world_hides_nothing(app: HttpApp, world: World, last: str) -> None:
    """As after a Redis that has lost its last second, or from a client that makes them up."""
    job_id = world.submit().job_id
    world.claim(LONG)
    with EventClient(url(app), job_id, last=last) as stream:
        assert stream.job().id == "2"


# --- while it waits ------------------------------------------------------------------------------


def test_a_waiting_job_shows_the_load_and_its_place(app: HttpApp, world: World) -> None:
    first, job_id = world.submit().job_id, world.submit().job_id
    with EventClient(url(app), job_id) as stream:
        assert stream.job().place == ("queued", 0, 1)
        for percent in ("10%", "43%"):
            world.beat(state=AppState.LOADING, phase=f"reading file {percent}")
            assert stream.job().data["phase"] == f"reading file {percent}"
        world.cancel(first)
        assert stream.job().place == ("queued", 0, 0)
        world.store.leave("sd-test", "r1")
        assert stream.job().data["phase"] == "starting a process"


def test_a_queue_in_a_hurry_is_looked_at_a_few_times_a_second(
    app: HttpApp, world: World, redis: Redis
) -> None:
    """Once for all that watch, however many they are and however often it changes."""
    ids = [world.submit().job_id for _ in range(20)]
    streams = [EventClient(url(app), job_id) for job_id in ids]
    try:
        for stream in streams:
            stream.job()
        begin, before = time.monotonic(), calls(redis)
        for percent in range(101):
            world.beat(state=AppState.LOADING, phase=f"reading file {percent}%")
        for stream in streams:
            while stream.job().data["phase"] != "reading file 100%":
                pass
        seconds, looks = time.monotonic() - begin, calls(redis) - before - 101
    finally:
        for stream in streams:
            stream.__exit__()
    # Two scripts for a look (the app, the places); besides them the gateway reaps, once a second.
    assert looks <= 2 * (seconds / viewers.QUEUE_INTERVAL + 2) + seconds + 2, (looks, seconds)


def test_what_the_clock_alone_changes_is_seen(
    redis_url: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a replica that is gone without a word."""
    monkeypatch.setattr(viewers, "CLOCK_INTERVAL", 0.2)
    job_id = world.submit().job_id
    world.beat(state=AppState.LOADING, phase="reading file 43%", lease=timedelta(seconds=1))
    gateway = create_app(edge_settings(redis_url))
    with HttpApp(gateway) as impatient, EventClient(url(impatient), job_id) as stream:
        assert stream.job().data["phase"] == "reading file 43%"
        assert stream.job().data["phase"] == "starting a process"


# --- slow, gone, many ----------------------------------------------------------------------------


class SlowReader:
    """The event stream of a job as an ASGI server sees it that sends only when it is told to."""

    def __init__(self, gateway: FastAPI, job_id: str) -> None:
        self.sent = asyncio.Queue[bytes]()
        self.reads = asyncio.Event()
        self.reads.set()
        self._scope: dict[str, Any] = {
            "type": "http", "method": "GET", "path": f"/v1/jobs/{job_id}/events", "headers": [],
            "query_string": b"", "http_version": "1.1", "root_path": "", "scheme": "http",
            "server": ("x", 80), "app": gateway,
        }  # fmt: skip
        self._gateway = gateway

    async def run(self) -> None:
        await self._gateway(self._scope, self._receive, self._send)

    async def until(self, part: bytes) -> None:
        while part not in await self.sent.get():
            pass

    async def _send(self, message: Any) -> None:
        await self.reads.wait()  # as where the connection's buffer is full
        self.sent.put_nowait(message.get("body", b""))

    async def _receive(self) -> Any:
        await asyncio.Event().wait()


async def test_who_reads_slowly_gets_the_newest(redis_url: str, world: World) -> None:
    """And the states between are kept nowhere."""
    job_id = world.submit().job_id
    job = world.claim(LONG)
    gateway = create_app(edge_settings(redis_url))
    reader = SlowReader(gateway, job_id)
    async with asyncio.timeout(LIMIT), gateway.router.lifespan_context(gateway):
        stream = asyncio.create_task(reader.run())
        await reader.until(b'"step":0')
        reader.reads.clear()
        for step in range(1, 21):
            await asyncio.to_thread(world.beat, job, step=step)
            await asyncio.sleep(0.02)  # so that each is looked at
        await asyncio.to_thread(world.succeed, job)
        reader.reads.set()
        await stream
    jobs = [body for body in drained(reader.sent) if b"event: job" in body]
    assert b'"status":"succeeded"' in jobs[-1]
    assert len(jobs) <= 3  # one was on its way when reading stopped, the newest may be two


async def test_a_change_is_made_ready_once_for_all_its_viewers(
    redis_url: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Counter[str]()

    def count(job: Job, app: AppStatus | None) -> float | None:
        made[job.phase or ""] += 1
        return eta_seconds(job, app)

    monkeypatch.setattr("api.schemas.eta_seconds", count)
    world.submit()
    job = world.claim(LONG)
    gateway = create_app(edge_settings(redis_url))
    readers = [SlowReader(gateway, job.id) for _ in range(100)]
    async with asyncio.timeout(LIMIT), gateway.router.lifespan_context(gateway):
        streams = [asyncio.create_task(reader.run()) for reader in readers]
        for reader in readers:
            await reader.until(b"event: job")
        await asyncio.to_thread(world.beat, job, step=7)
        for reader in readers:
            await reader.until(b'"step":7')
        await asyncio.to_thread(world.succeed, job)
        await asyncio.gather(*streams)
    assert made["step 7 of 20"] <= 3  # once a look: that of a step, and some of the clock


async def test_a_server_that_stops_ends_its_streams(redis_url: str, world: World) -> None:
    gateway = create_app(edge_settings(redis_url))
    reader = SlowReader(gateway, world.submit().job_id)
    async with asyncio.timeout(LIMIT):
        async with gateway.router.lifespan_context(gateway):
            stream = asyncio.create_task(reader.run())
            await reader.until(b"event: job")
        await stream
    assert drained(reader.sent)[-1] == b""  # a proper end, not a cut


def drained(queue: asyncio.Queue[bytes]) -> list[bytes]:
    return [queue.get_nowait() for _ in range(queue.qsize())]


def test_a_viewer_who_leaves_costs_nothing_any_more(
    app: HttpApp, world: World, redis: Redis
) -> None:
    world.submit()
    job = world.claim(LONG)
    with EventClient(url(app), job.id) as stream:
        stream.job()
    other = world.submit().job_id
    with EventClient(url(app), other) as witness:
        witness.job()

        steps = iter(range(1, 100))

        def looks_of_a_step() -> int:
            before, step = calls(redis), next(steps)
            world.beat(job, step=step)
            world.beat(state=AppState.LOADING, phase=f"phase {step}")
            while witness.job().data["phase"] != f"phase {step}":
                pass
            return calls(redis) - before

        # Two beats, and the witness' look at the app and its queue: nobody looks at the job.
        until(lambda: looks_of_a_step() <= 4)


def test_a_stream_ends_in_time_and_goes_on_where_it_was(
    app: HttpApp, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "LIFE", timedelta(seconds=1))
    job_id = world.submit().job_id
    job = world.claim(LONG)
    with EventClient(url(app), job_id) as stream:
        events = [event for event in stream if event.kind]
    assert [event.place for event in events] == [("running", 0, None)]
    world.beat(job, step=1)
    with EventClient(url(app), job_id, last=events[-1].id) as stream:
        assert stream.job().place == ("running", 1, None)


def test_a_quiet_stream_is_kept_alive(
    app: HttpApp, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "PING", 0.2)
    with EventClient(url(app), world.submit().job_id) as stream:
        for _ in range(2):
            stream.comment("ping")


# --- previews ------------------------------------------------------------------------------------


def test_previews_are_for_who_asks(app: HttpApp, world: World) -> None:
    job_id = world.submit().job_id
    job = world.claim(LONG)
    with EventClient(url(app), job_id) as plain, EventClient(url(app), job_id, previews=True) as p:
        for stream in (plain, p):
            stream.job()
        assert world.show_preview(job, PICTURE)
        assert p.next("preview").data == {
            "step": 3, "steps": 20, "number": 0, "image": "data:image/webp;base64,d2VicA==",
        }  # fmt: skip
        world.succeed(job)
        kinds: list[list[Event]] = [list(plain), list(p)]
    assert [[event.kind for event in events if event.kind] for events in kinds] == [["job"]] * 2


def test_a_replica_is_asked_for_previews_only_while_somebody_watches(
    redis_url: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewers, "WISH", timedelta(seconds=2))
    monkeypatch.setattr(viewers, "CLOCK_INTERVAL", 0.5)
    job_id = world.submit().job_id
    job = world.claim(LONG)
    with HttpApp(create_app(edge_settings(redis_url))) as one:
        with EventClient(url(one), job_id) as stream:
            stream.job()
            assert world.beat(job) == ["ok"]
        with EventClient(url(one), job_id, previews=True) as stream:
            stream.job()
            until(lambda: world.beat(job) == ["watched"])
            end = time.monotonic() + 3
            while time.monotonic() < end:  # the wish is repeated
                assert world.beat(job) == ["watched"]
                time.sleep(0.1)
        until(lambda: world.beat(job) == ["ok"])


def test_a_preview_has_no_id(app: HttpApp, world: World) -> None:
    """It would become the Last-Event-ID, and hide a state."""
    job_id = world.submit().job_id
    job = world.claim(LONG)
    with EventClient(url(app), job_id, previews=True) as stream:
        stream.job()
        world.show_preview(job, PICTURE)
        assert stream.next("preview").id is None


def test_a_full_store_only_costs_the_previews(app: HttpApp, world: World, redis: Redis) -> None:
    job_id = world.submit().job_id
    job = world.claim(LONG)
    used: Any = redis.info("memory")
    redis.config_set("maxmemory", used["used_memory"] // 2)
    try:
        with EventClient(url(app), job_id, previews=True) as stream:
            assert stream.job().place == ("running", 0, None)
            world.beat(job, step=1)
            assert stream.job().place == ("running", 1, None)
    finally:
        redis.config_set("maxmemory", 0)


# --- missed ---------------------------------------------------------------------------------------


def test_what_happens_while_nobody_listens_is_told_later(
    app: HttpApp, world: World, redis: Redis
) -> None:
    job_id = world.submit().job_id
    job = world.claim(LONG)
    with EventClient(url(app), job_id) as stream:
        stream.job()
        redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        world.beat(job, step=1)
        assert stream.job().place == ("running", 1, None)


def test_a_record_that_vanishes_ends_the_stream(app: HttpApp, world: World, redis: Redis) -> None:
    """Whoever comes back then gets the 404."""
    job_id = world.submit().job_id
    with EventClient(url(app), job_id) as stream:
        stream.job()
        redis.delete(keys.JOB + job_id, keys.INDEX)
        redis.publish(keys.CHANNEL + "sd-test", job_id)
        assert [event.text for event in stream][-1] == json.loads(
            app.http.get(f"/v1/jobs/{job_id}").text
        )["detail"]
