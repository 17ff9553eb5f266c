"""Thousands of long polls in one process: cheap, woken together, in nobody's way."""

import asyncio
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from redis import Redis

from api.gateway import create_app
from sdserve.async_store import CONNECTIONS
from sdserve.store import RedisJobStore
from tests.http_app import HttpApp, edge_settings
from tests.store_world import World
from tests.waiting import LIMIT, until

pytestmark = pytest.mark.integration

WAITERS, JOBS = 2000, 100
LONG = timedelta(minutes=30)


@pytest.fixture
def app(redis_url: str, redis: Redis) -> Iterator[HttpApp]:
    with HttpApp(create_app(edge_settings(redis_url))) as one:
        yield one


def calls(redis: Redis) -> int:
    """Scripts that Redis has run so far."""
    stats: Any = redis.info("commandstats")
    return stats.get("cmdstat_evalsha", {"calls": 0})["calls"]


async def long_poll(port: int, job_id: str) -> bytes:
    """The answer's first bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /v1/jobs/{job_id}?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    text = await reader.readuntil(b'"progress"')
    writer.close()
    return text


async def test_two_thousand_long_polls(app: HttpApp, redis: Redis) -> None:
    world = World(RedisJobStore(redis), redis)
    ids = [world.submit(queue_limit=JOBS).job_id for _ in range(JOBS)]
    looked = calls(redis)
    async with asyncio.timeout(LIMIT), asyncio.TaskGroup() as tasks:
        polls = [tasks.create_task(long_poll(app.port, ids[k % JOBS])) for k in range(WAITERS)]
        # Each has asked whose job it is and how it stands, then waits.
        await asyncio.to_thread(until, lambda: calls(redis) - looked >= 2 * WAITERS)
        assert not any(poll.done() for poll in polls)
        looked = calls(redis)
        clients: Any = redis.client_list()
        assert len(clients) <= CONNECTIONS + 3  # the events, this test, its fixture
        seconds = await asyncio.to_thread(lambda: [_health(app) for _ in range(20)])
        assert min(seconds) < 0.1, seconds
        # Nobody polls: all that runs is the gateway's own reaping, once a second and app.
        assert calls(redis) - looked < WAITERS / 10

        start = time.monotonic()
        await asyncio.to_thread(lambda: [world.succeed(world.claim(LONG)) for _ in range(JOBS)])
    answers = [poll.result() for poll in polls]
    assert all(b"200 OK" in text and b'"status":"succeeded"' in text for text in answers)
    assert time.monotonic() - start < 50  # woken, not timed out


def _health(app: HttpApp) -> float:
    start = time.monotonic()
    assert app.http.get("/v1/health").status_code == 200
    return time.monotonic() - start
