"""The HTTP edge while Redis is away or full: a clean 503 in time, and the truth about the job."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from redis import Redis

from api.edge import EdgeSettings
from sdserve import keys
from sdserve.jobs import JobStatus
from sdserve.operations import ViewJob
from sdserve.store import RedisJobStore
from tests.faults.redis_process import RedisProcess
from tests.faults.tcp_proxy import CALM, TcpProxy, Weather
from tests.http_app import one_app
from tests.values import APP, JOB_TTL, spec

# An edge must also stop whatever Redis did: its lifespan ends within this limit, or the test fails.
pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

PATIENCE = 20.0  # seconds: two tries of at most 1.5 s each, on a loaded machine
PROMPT = {"prompt": "a red circle on a blue background"}
AWAY = {
    "a black hole to Redis": Weather(hold_requests=True),
    "a black hole from Redis": Weather(hold_replies=True),
    "lost replies": Weather(cut_replies=True),
}


@pytest.fixture
def proxy(server: RedisProcess) -> Iterator[TcpProxy]:
    with TcpProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
async def http(proxy: TcpProxy) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of one app's routes, which reaches Redis through the proxy."""
    settings = EdgeSettings(redis_url=proxy.url, job_ttl=JOB_TTL, sync_wait=timedelta(seconds=60))
    app = one_app(spec(), settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60)
    async with app.router.lifespan_context(app), client:
        assert (await client.get("/v1/health")).status_code == 200  # connected
        yield client


def is_away(answer: httpx.Response) -> bool:
    kind = answer.json().get("type")
    known = kind == "urn:sdserve:problem:store_unavailable" and int(answer.headers["Retry-After"])
    return answer.status_code == 503 and bool(known)


@pytest.mark.parametrize("kind", AWAY)
async def test_a_redis_that_is_away_is_a_503_in_time(
    proxy: TcpProxy, http: httpx.AsyncClient, kind: str
) -> None:
    proxy.set(AWAY[kind])
    start = time.monotonic()
    answers = await asyncio.gather(
        http.post("/v1/generate", json=PROMPT),
        http.get("/v1/jobs/01890a5d-ac96-774b-bcce-b302099a8057"),
        http.get("/v1/health"),
    )
    assert time.monotonic() - start < PATIENCE
    assert [is_away(answer) for answer in answers] == [True] * 3, [a.text for a in answers]
    proxy.set(CALM)
    assert (await http.get("/v1/health")).status_code == 200


async def test_a_killed_redis_is_a_503_and_then_forgotten(
    server: RedisProcess, http: httpx.AsyncClient
) -> None:
    server.kill()
    assert is_away(await http.post("/v1/generate", json=PROMPT))
    server.start()
    assert (await http.post("/v1/generate", json=PROMPT)).status_code == 202


async def test_a_full_redis_is_a_503_and_nothing_is_accepted(
    server: RedisProcess, http: httpx.AsyncClient
) -> None:
    with server.client() as redis:
        redis.config_set("maxmemory", 1)
        answer = await http.post("/v1/generate", json=PROMPT)
        assert (answer.status_code, answer.json()["type"]) == (
            503,
            "urn:sdserve:problem:store_full",
        )
        assert int(answer.headers["Retry-After"]) > 0
        assert redis.zcard(keys.QUEUE + APP) == 0
        redis.config_set("maxmemory", 0)
    assert (await http.post("/v1/generate", json=PROMPT)).status_code == 202


async def test_who_waits_when_redis_goes_away_learns_the_job_that_was_accepted(
    server: RedisProcess, proxy: TcpProxy, http: httpx.AsyncClient
) -> None:
    waiting = asyncio.create_task(
        http.post("/v1/generate", json=PROMPT, headers={"Prefer": "wait=60"})
    )
    with server.client() as redis:
        job_id = await _first_queued(redis)
        proxy.set(Weather(hold_requests=True))
        answer = await asyncio.wait_for(waiting, 60)
        assert is_away(answer)
        assert answer.json()["job_id"] == job_id
        assert RedisJobStore(redis).run(ViewJob(job_id=job_id)).status is JobStatus.QUEUED


async def _first_queued(redis: Redis) -> str:
    deadline = time.monotonic() + 60
    while True:
        ids: Any = redis.zrange(keys.QUEUE + APP, 0, 0)
        if ids:
            return ids[0].decode()
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
