"""A Redis that is gone or silent: every route says so within a second, and heals by itself."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from fastapi import FastAPI

from api import gateway
from api.edge import Edge
from api.job_events import JobEvents
from sdserve.daemon import Daemon
from sdserve.errors import StoreUnavailableError
from sdserve.jobs import JobStatus
from sdserve.operations import Ending
from sdserve.redis_server import ensure_redis, stop_redis
from sdserve.settings import Settings
from sdserve.store import RedisJobStore, connect
from tests.event_client import EventClient
from tests.http_app import PROMPT, HttpApp, answer, edge_settings, one_app
from tests.looked_at import LookedAtStore
from tests.store_world import World
from tests.values import APP, spec
from tests.waiting import LIMIT, until

pytestmark = pytest.mark.integration

TRIES = 10  # the best of so many is a second at most, however loaded the machine is


class OwnRedis:
    """A server that this test may freeze and kill."""

    def __init__(self, folder: Path) -> None:
        self._settings = Settings(redis_url=None, state_dir=folder)
        self.url = ensure_redis(self._settings)
        self.world = World(RedisJobStore(connect(self.url)), None)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def kill(self) -> None:
        process = self._signal(signal.SIGKILL)
        assert process is not None
        process.wait(LIMIT)

    def revive(self) -> None:
        self._signal(signal.SIGCONT)
        assert ensure_redis(self._settings) == self.url

    def stop(self) -> None:
        self._signal(signal.SIGCONT)
        stop_redis(self._settings)

    def _signal(self, number: signal.Signals) -> psutil.Process | None:
        daemon = Daemon.find(self._settings.state_dir / "redis" / "server.json")
        if daemon is None:
            return None
        os.kill(daemon.pid, number)
        return psutil.Process(daemon.pid)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    one = OwnRedis(tmp_path)
    yield one
    one.stop()


@pytest.fixture(params=["app", "gateway"])
def app(request: pytest.FixtureRequest, own_redis: OwnRedis) -> Iterator[HttpApp]:
    settings = edge_settings(own_redis.url)
    made = one_app(spec(), settings) if request.param == "app" else gateway.create_app(settings)
    with HttpApp(made) as one:
        yield one


def routes(app: FastAPI, job_id: str) -> list[tuple[str, str]]:
    """Method and path of everything that asks Redis."""
    return [
        (method.upper(), path.format(job_id=job_id, batch_id=job_id, number=0))
        for path, operations in app.openapi()["paths"].items()
        for method in operations
        if not path.endswith("/live")
    ]


def ask(app: HttpApp, method: str, path: str) -> tuple[httpx.Response, float]:
    """The answer, and the seconds it took."""
    start = time.monotonic()
    batch = {"app": APP, "lines": [PROMPT]}
    body = None if method != "POST" else batch if path.endswith("/batches") else PROMPT
    return app.http.request(method, path, json=body), time.monotonic() - start


@pytest.mark.parametrize("how", ["freeze", "kill"])
def test_every_route_says_so_within_a_second_and_heals(
    app: HttpApp, own_redis: OwnRedis, how: str
) -> None:
    job_id = own_redis.world.submit().job_id
    asked = routes(app.app, job_id)
    assert len(asked) >= 6
    assert app.http.get(f"/v1/jobs/{job_id}").status_code == 200
    getattr(own_redis, how)()
    for method, path in asked:
        seconds = LIMIT
        for _ in range(TRIES):
            away, took = ask(app, method, path)
            assert away.status_code == 503, (method, path, away.text)
            assert away.headers["Content-Type"] == "application/problem+json"
            assert away.headers["Retry-After"]
            assert away.json()["type"] == "urn:sdserve:problem:store_unavailable"
            seconds = min(seconds, took)
            if seconds < 1:
                break
        assert seconds < 1, (method, path)
    assert app.http.get("/v1/health/live").status_code == 200
    own_redis.revive()
    until(lambda: app.http.get(f"/v1/jobs/{job_id}").status_code == 200)
    until(lambda: app.http.get("/v1/health").status_code == 200)


def test_nobody_learns_of_an_app_what_the_gateway_would_not_tell(own_redis: OwnRedis) -> None:
    """Who asks is checked before the app is looked up, which needs Redis."""
    settings = edge_settings(own_redis.url, is_key_required=True)
    with HttpApp(gateway.create_app(settings)) as app:
        own_redis.kill()
        assert app.http.get(f"/{APP}/v1/models").status_code == 401
        assert app.http.get(f"/{APP}/v1/health").status_code == 503
        assert app.http.get(f"/{APP}/v1/health/live").json() == {"status": "alive"}


def test_many_at_once_wait_no_longer_than_one(app: HttpApp, own_redis: OwnRedis) -> None:
    assert app.http.get("/v1/health").status_code == 200
    own_redis.freeze()
    seconds = LIMIT
    for _ in range(TRIES):
        start = time.monotonic()
        clients = [app.call("GET /v1/health HTTP/1.1\nHost: localhost") for _ in range(200)]
        for client in clients:
            with client:
                assert answer(client)[0] == 503
        seconds = min(seconds, time.monotonic() - start)
        if seconds < 2:
            break
    assert seconds < 2  # one after the other on every connection they would need 10


@pytest.mark.parametrize("how", ["freeze", "kill"])
async def test_who_waits_already_waits_on_and_gets_the_result(
    own_redis: OwnRedis, how: str
) -> None:
    """His job was accepted, and lives."""
    world = own_redis.world
    job_id = world.submit().job_id
    edge = Edge(edge_settings(own_redis.url))
    store = LookedAtStore(own_redis.url)
    events = JobEvents(own_redis.url, store, edge.viewers, edge.registry)
    async with store, edge.running(), asyncio.timeout(LIMIT), asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(events.listen())
        waiting = tasks.create_task(events.wait(job_id, 10 * LIMIT))
        assert (await store.looks.get()).job.status is JobStatus.QUEUED
        await asyncio.to_thread(getattr(own_redis, how))
        with pytest.raises(StoreUnavailableError):
            await edge.look(job_id)
        assert not waiting.done()
        await asyncio.to_thread(own_redis.revive)
        # Ended at once, most likely before anybody listens again.
        assert world.succeed(world.claim()) is Ending.FINISHED
        assert (await waiting).job.status is JobStatus.SUCCEEDED
        listening.cancel()


@pytest.mark.parametrize("how", ["freeze", "kill"])
def test_who_watches_is_told_and_goes_on_watching(
    app: HttpApp, own_redis: OwnRedis, how: str
) -> None:
    world = own_redis.world
    job_id = world.submit().job_id
    with EventClient(f"http://127.0.0.1:{app.port}", job_id) as stream:
        assert stream.job().place == ("queued", 0, 0)
        getattr(own_redis, how)()
        stream.comment("Redis does not answer")
        own_redis.revive()
        # Claimed at once, most likely before anybody listens again.
        world.claim()
        assert stream.job().place == ("running", 0, None)
