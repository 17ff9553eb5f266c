"""Quotas of a key and its rate of requests, over HTTP."""

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from redis import Redis

from sdserve.api_keys import Role
from sdserve.limits import Limits, Quotas, Rate
from sdserve.operations import Ending
from sdserve.store import RedisJobStore
from sdserve.usage import Spent
from sdserve.webhook_targets import WebhookTargets
from tests.http_app import GENERATE, PROMPT, HttpApp, edge_settings, one_app
from tests.keys import bearer, create_key
from tests.store_world import World
from tests.values import spec
from tests.waiting import until

pytestmark = pytest.mark.integration

ASYNC = {"Prefer": "respond-async"}
DAY = 86400


@pytest.fixture
def world(redis: Redis) -> World:
    return World(RedisJobStore(redis), redis)


@pytest.fixture
def app(redis_url: str) -> Iterator[HttpApp]:
    """Two unfinished jobs for each key, unless it has a bound of its own."""
    settings = edge_settings(redis_url, limits=Limits(client=Quotas(jobs=2)))
    with HttpApp(one_app(spec(), settings)) as one:
        yield one


def key(world: World, **quotas: Any) -> dict[str, str]:
    """The headers of a new key with these quotas."""
    return ASYNC | bearer(create_key(world.store, "ann", quotas=Quotas(**quotas)))


def refusal(answer: httpx.Response) -> str:
    """The type of a 429 that says when to come back."""
    problem = answer.json()
    assert answer.status_code == 429, problem
    assert int(answer.headers["Retry-After"]) >= 1
    assert "RateLimit" in answer.headers
    assert "RateLimit-Policy" in answer.headers
    return problem["type"].removeprefix("urn:sdserve:problem:")


def until_midnight() -> float:
    """Seconds until the day ends in UTC."""
    now = datetime.now(UTC)
    return DAY - (now.hour * 3600 + now.minute * 60 + now.second + now.microsecond / 1e6)


def test_the_servers_bound_of_unfinished_jobs_holds_for_each_key(
    app: HttpApp, world: World
) -> None:
    ann, bob = key(world), key(world)
    for left in (1, 0):
        accepted = app.generate(ann)
        assert accepted.status_code == 202
        assert accepted.headers["RateLimit-Policy"] == '"jobs";q=2;qu="concurrent-requests"'
        assert accepted.headers["RateLimit"] == f'"jobs";r={left}'
    assert refusal(app.generate(ann)) == "too_many_jobs"
    assert app.generate(bob).status_code == 202
    assert app.generate(ASYNC).status_code == 202


def test_a_keys_own_bound_goes_before_the_servers(app: HttpApp, world: World) -> None:
    more, less = key(world, jobs=3), key(world, queued=1)
    assert [app.generate(more).status_code for _ in range(4)] == [202, 202, 202, 429]
    assert app.generate(less).status_code == 202
    assert refusal(app.generate(less)) == "too_many_queued_jobs"


def test_an_admin_has_quotas_too(app: HttpApp, world: World) -> None:
    root = ASYNC | bearer(create_key(world.store, "root", Role.ADMIN))
    assert [app.generate(root).status_code for _ in range(3)] == [202, 202, 429]


@pytest.mark.parametrize(
    ("quota", "code"),
    [({"images_per_day": 1}, "images_spent"), ({"gpu_seconds_per_day": 1}, "gpu_seconds_spent")],
)
def test_a_quota_of_the_day_says_when_the_day_ends(
    quota: dict[str, int], code: str, app: HttpApp, world: World
) -> None:
    mine = key(world, **quota)
    assert app.generate(mine).status_code == 202
    assert world.succeed(world.claim(), spent=Spent(gpu_ms=1000)) is Ending.FINISHED
    before = until_midnight()
    refused = app.generate(mine)
    assert refusal(refused) == code
    wait, after = int(refused.headers["Retry-After"]), until_midnight()
    if after <= before:  # else midnight was just now
        assert after - 1 <= wait <= before + 1
        assert refused.headers["RateLimit"].endswith(f";r=0;t={wait}")
    assert f"retry in {wait} s" in refused.json()["detail"]


def test_a_repeat_of_an_accepted_job_is_within_every_quota(app: HttpApp, world: World) -> None:
    mine = key(world, images_per_day=1) | {"Idempotency-Key": "k"}
    first, again = app.generate(mine), app.generate(mine)
    assert first.json()["id"] == again.json()["id"]


def test_requests_beyond_the_rate_are_refused_and_told_when(app: HttpApp, world: World) -> None:
    mine, other = key(world, rate=Rate(requests=3, seconds=60)), key(world)
    job = app.generate(mine)
    assert job.headers["RateLimit-Policy"].startswith('"requests";q=3;w=60, "jobs"')
    assert re.match(r'"requests";r=2;t=\d+, "jobs";r=1$', job.headers["RateLimit"])
    path = f"/v1/jobs/{job.json()['id']}"
    assert [app.http.get(path, headers=mine).status_code for _ in range(2)] == [200, 200]
    for answer in (app.generate(mine), app.http.get(path, headers=mine)):
        assert refusal(answer) == "rate_limited"
        assert answer.headers["RateLimit"].startswith('"requests";r=0;t=')
        assert int(answer.headers["Retry-After"]) <= 60
    # Each key has its own; anonymous requests have none, and health is for all.
    assert app.generate(other).status_code == 202
    assert app.generate(ASYNC).status_code == 202
    assert app.http.get("/v1/health", headers=mine).status_code == 200


def test_who_waits_as_long_as_he_is_told_may_ask_again(app: HttpApp, world: World) -> None:
    mine = key(world, rate=Rate(requests=2, seconds=1))

    def ask() -> httpx.Response:
        return app.http.get("/v1/models", headers=mine)

    until(lambda: ask().status_code == 429)
    refused = ask()
    while refused.status_code == 200:
        refused = ask()
    time.sleep(int(refused.headers["Retry-After"]))  # what is promised is a time
    assert ask().status_code == 200


def test_while_redis_is_away_nobody_is_let_in(redis_url: str) -> None:
    """Neither the key nor the rate can be looked up: 503, for a valid token too."""
    settings = edge_settings("redis://127.0.0.1:1", is_key_required=True)
    token = "sd_ann_" + "x" * 43
    with HttpApp(one_app(spec(), settings)) as one:
        answer = one.generate({"Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.json()["type"]) == (
        503,
        "urn:sdserve:problem:store_unavailable",
    )


def test_a_refused_webhook_tells_what_is_left(redis_url: str, world: World) -> None:
    limits = Limits(client=Quotas(jobs=2), webhooks=0)
    targets = WebhookTargets.parse("127.0.0.1")
    settings = edge_settings(redis_url, limits=limits, webhooks=targets)
    body = PROMPT | {"webhook": "https://127.0.0.1/told"}
    with HttpApp(one_app(spec(), settings)) as app:
        refused = app.http.post(GENERATE, json=body, headers=key(world))
        assert refusal(refused) == "too_many_webhooks"
        assert refused.headers["RateLimit"] == '"jobs";r=2'


def test_a_full_store_counts_no_requests_yet_lets_jobs_be_cancelled(
    app: HttpApp, world: World, redis: Redis
) -> None:
    mine = key(world, rate=Rate(requests=100, seconds=60))
    path = f"/v1/jobs/{app.generate(mine).json()['id']}"
    before: Any = redis.config_get("maxmemory")
    redis.config_set("maxmemory", 1)
    try:
        assert app.generate(mine).status_code == 503
        assert app.http.delete(path, headers=mine).json()["status"] == "cancelled"
    finally:
        redis.config_set("maxmemory", before["maxmemory"])


def test_refusals_are_declared(app: HttpApp) -> None:
    described = app.http.get("/openapi.json").json()["paths"]
    for path, methods in described.items():
        for method, operation in methods.items():
            assert ("429" in operation["responses"]) is ("security" in operation), (method, path)
    assert app.http.post(GENERATE, json=PROMPT).status_code == 202
