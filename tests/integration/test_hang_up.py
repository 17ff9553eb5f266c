"""Clients that hang up: what becomes of their jobs."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from redis import Redis
from starlette.types import Message

from api.edge import Edge
from api.hang_up import ClientGoneError
from sdserve.apps import AppState
from sdserve.jobs import JobStatus
from sdserve.operations import Ending, Pulse
from sdserve.store import RedisJobStore
from tests.http_app import HttpApp, edge_settings, one_app
from tests.store_world import World
from tests.values import APP, spec
from tests.waiting import until

pytestmark = pytest.mark.integration

LONG = timedelta(minutes=10)


@pytest.fixture
def world(redis: Redis) -> World:
    """An app with a warm replica, which is this test."""
    one = World(RedisJobStore(redis), redis)
    one.beat(state=AppState.READY, lease=LONG)
    return one


@pytest.fixture
def app(redis_url: str) -> Iterator[HttpApp]:
    with HttpApp(one_app(spec(), edge_settings(redis_url))) as one:
        yield one


def hang_up_and_be_noticed(app: HttpApp, world: World) -> None:
    """Once this returns, the server has dealt with everybody who hung up before."""
    client = app.call_generate("Prefer: wait=60")
    until(lambda: world.store.app_status(APP).queued == 1)
    client.close()
    until(lambda: world.store.app_status(APP).queued == 0)


def test_a_running_job_is_cancelled_within_a_step(app: HttpApp, world: World) -> None:
    client = app.call_generate()
    until(lambda: world.store.app_status(APP).queued)
    job = world.claim(LONG)
    assert world.beat(job) == [Pulse.OK]
    client.close()
    # A replica beats between any two steps.
    until(lambda: world.beat(job) == [Pulse.CANCEL])


def test_a_queued_job_is_cancelled_at_once(app: HttpApp, world: World) -> None:
    client = app.call_generate("Prefer: wait=60")
    until(lambda: world.store.app_status(APP).queued)
    client.close()
    until(lambda: world.store.app_status(APP).queued == 0)
    assert world.store.app_status(APP).running == 0


def test_with_a_key_the_job_goes_on_and_the_retry_gets_it(app: HttpApp, world: World) -> None:
    client = app.call_generate("Idempotency-Key: k")
    until(lambda: world.store.app_status(APP).queued)
    job = world.claim(LONG)
    client.close()
    hang_up_and_be_noticed(app, world)
    assert world.succeed(job) is Ending.FINISHED
    again = app.generate({"Idempotency-Key": "k"})
    assert (again.status_code, again.headers["X-Job-Id"]) == (200, job.id)
    assert again.json()["image"].startswith("data:image/png;base64,")


def test_a_long_poll_that_hangs_up_leaves_the_job_alone(app: HttpApp, world: World) -> None:
    accepted = app.generate({"Prefer": "respond-async"}).json()
    job = world.claim(LONG)
    client = app.call(f"GET {accepted['links']['self']}?wait=60 HTTP/1.1\nHost: localhost")
    client.close()
    hang_up_and_be_noticed(app, world)
    assert world.succeed(job) is Ending.FINISHED


async def test_a_request_that_serve_cancels_cancels_its_job(redis_url: str, world: World) -> None:
    """Serve's proxy tells of a hang-up by cancelling the request's task."""
    edge = Edge(edge_settings(redis_url))
    async with edge.running():
        accepted = world.submit()

        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        request = asyncio.create_task(edge.wait_for(receive, APP, accepted.job_id, 60))
        await asyncio.sleep(0)
        request.cancel()
        await asyncio.wait([request])
        assert request.cancelled()
    # Left the edge: what it still had to do is done.
    assert world.view(accepted.job_id).status is JobStatus.CANCELLED


async def test_a_connection_that_fails_is_a_hang_up(redis_url: str, world: World) -> None:
    """Serve's proxy tells of it in three ways, whichever is first; so does its death."""
    edge = Edge(edge_settings(redis_url))
    async with edge.running():
        accepted = world.submit()

        async def receive() -> Any:
            raise ConnectionError("the proxy died")

        with pytest.raises(ClientGoneError):
            await edge.wait_for(receive, APP, accepted.job_id, 60)
    assert world.view(accepted.job_id).status is JobStatus.CANCELLED
