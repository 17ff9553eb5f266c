"""The gateway answers for all apps, each by its own routes; deploying one touches no other."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest
from redis import Redis

from api import dispatch, gateway
from api.edge import Edge
from api.registry import Registry
from sdserve.apps import AppSpec
from sdserve.async_store import AsyncJobStore, connect_async
from sdserve.jobs import JobFailure
from sdserve.operations import Drain
from sdserve.store import RedisJobStore
from tests.http_app import PROMPT, HttpApp, edge_settings
from tests.values import APP, DEFAULTS, JOB_TTL, spec, submit
from tests.waiting import LIMIT, until

pytestmark = pytest.mark.integration

OTHER = "sd-other"


@pytest.fixture
def store(redis: Redis) -> RedisJobStore:
    return RedisJobStore(redis)


@pytest.fixture
def app(store: RedisJobStore, redis_url: str) -> Iterator[HttpApp]:
    """The gateway, with one app deployed."""
    store.register_app(spec())
    with HttpApp(gateway.create_app(edge_settings(redis_url))) as one:
        yield one


def other(**changes: object) -> AppSpec:
    return replace(spec(name=OTHER), **changes)


def delete(store: RedisJobStore, name: str) -> None:
    """As deploy_sd.sh does."""
    failure = JobFailure(code="app_gone", message="It was deleted.")
    store.drain(Drain(app=name, failure=failure, job_ttl=JOB_TTL, broken=True))
    store.unregister_app(name)


def generate(app: HttpApp, name: str) -> httpx.Response:
    return app.http.post(f"/{name}/v1/generate", json=PROMPT)


def test_an_app_answers_under_its_name_and_describes_itself(app: HttpApp) -> None:
    answer = generate(app, APP)
    assert answer.status_code == 202
    job_id = answer.json()["id"]
    assert app.http.get(f"/{APP}/v1/jobs/{job_id}").json()["app"] == APP
    assert app.http.get(f"/{APP}/v1/health").json()["app"] == APP
    assert app.http.get(f"/{APP}/v1/health/live").json() == {"status": "alive"}
    document = app.http.get(f"/{APP}/openapi.json").json()
    assert document["servers"] == [{"url": f"/{APP}"}]
    width = document["components"]["schemas"]["GenerateRequest"]["properties"]["width"]
    assert width["default"] == DEFAULTS.width
    assert f'"/{APP}/openapi.json"' in app.http.get(f"/{APP}/docs").text.replace("'", '"')


def test_an_app_knows_only_its_own_jobs(app: HttpApp, store: RedisJobStore) -> None:
    store.register_app(other())
    job_id = generate(app, APP).json()["id"]
    assert app.http.get(f"/{OTHER}/v1/jobs/{job_id}").status_code == 404
    assert app.http.get(f"/{OTHER}/v1/jobs").json()["data"] == []
    assert [job["id"] for job in app.http.get("/v1/jobs").json()["data"]] == [job_id]


async def test_a_new_app_is_there_at_once_whatever_was_listed_before(
    redis_url: str, store: RedisJobStore
) -> None:
    """Also where the news of it is still on its way."""
    client = connect_async(redis_url)
    registry = Registry(AsyncJobStore(client))
    registry.follow()
    assert await registry.all() == {}
    store.register_app(other())
    assert await registry.find(OTHER) == other()
    await client.aclose()


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/health", "/docs", "/", ""])
@pytest.mark.parametrize(
    "name", ["sd-nowhere", "gateway", "sd-Test", "sd-test%2F", "sd-" + "x" * 300]
)
def test_what_is_not_deployed_is_no_app(app: HttpApp, name: str, path: str) -> None:
    method = "POST" if path == "/v1/generate" else "GET"
    answer = app.http.request(method, f"/{name}{path}", json=PROMPT if method == "POST" else None)
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_a_deploy_a_change_and_a_deletion_hold_from_the_next_request_on(
    app: HttpApp, store: RedisJobStore
) -> None:
    assert generate(app, OTHER).status_code == 404
    store.register_app(other(queue_limit=1))
    assert generate(app, OTHER).status_code == 202  # a miss always asks
    assert generate(app, OTHER).status_code == 503
    store.register_app(other(queue_limit=2))
    until(lambda: generate(app, OTHER).status_code == 202)
    delete(store, OTHER)
    assert generate(app, OTHER).status_code != 202  # whether it has heard of it or not
    until(lambda: generate(app, OTHER).status_code == 404)
    store.heal(OTHER)
    store.register_app(other())
    assert generate(app, OTHER).status_code == 202


def test_requests_that_are_held_for_one_app_outlive_all_that_happens_to_another(
    app: HttpApp, store: RedisJobStore
) -> None:
    job_id = store.run(submit()).job_id
    with ThreadPoolExecutor(8) as pool:
        held = [
            pool.submit(app.http.get, f"{path}/v1/jobs/{job_id}", params={"wait": 60})
            for path in ("", f"/{APP}") * 4
        ]
        store.register_app(other())
        until(lambda: generate(app, OTHER).status_code == 202)
        store.register_app(other(queue_limit=5))
        assert generate(app, OTHER).status_code == 202
        delete(store, OTHER)
        until(lambda: generate(app, OTHER).status_code == 404)
        # Even a new version of their own app.
        store.register_app(spec(queue_limit=7))
        limits = lambda: app.http.get(f"/{APP}/v1/models").json()["data"][0]["limits"]  # noqa: E731
        until(lambda: limits()["queue"] == 7)
        assert not any(each.done() for each in held)
        assert app.http.delete(f"/v1/jobs/{job_id}").status_code == 200
        answers = [each.result(LIMIT) for each in held]
    assert [(each.status_code, each.json()["status"]) for each in answers] == [
        (200, "cancelled")
    ] * 8


def test_only_deployed_apps_are_kept_and_not_without_end(
    app: HttpApp, store: RedisJobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "KEPT", 2)
    made = list[str]()
    create = dispatch.ingress.create_app

    def counted(spec: AppSpec, edge: Edge) -> object:
        made.append(spec.name)
        return create(spec, edge)

    monkeypatch.setattr(dispatch.ingress, "create_app", counted)
    for number in range(20):
        assert app.http.get(f"/sd-unknown-{number}/v1/health").status_code == 404
    assert made == []
    names = [f"sd-{letter}" for letter in "abc"]
    for name in names:
        store.register_app(spec(name=name))
        for _ in range(3):
            assert app.http.get(f"/{name}/v1/health/live").status_code == 200
    assert made == names
    assert app.http.get("/sd-c/v1/health/live").status_code == 200
    assert made == names
    assert app.http.get("/sd-a/v1/health/live").status_code == 200  # was let go for sd-c
    assert made == [*names, "sd-a"]


async def test_a_specification_that_was_read_before_a_change_is_not_kept(
    redis: Redis, redis_url: str
) -> None:
    store = RedisJobStore(redis)
    store.register_app(spec())
    client = connect_async(redis_url)
    registry = Registry(slow := SlowStore(client))
    registry.follow()
    asking = asyncio.create_task(registry.find(APP))
    await slow.has_read.wait()
    store.register_app(spec(queue_limit=7))
    registry.forget(APP)  # the message comes before the reply
    slow.may_answer.set()
    await asking
    found = await registry.find(APP)
    assert found is not None
    assert found.queue_limit == 7
    await client.aclose()


class SlowStore(AsyncJobStore):
    """Its replies are slow to arrive."""

    def __init__(self, client: object) -> None:
        super().__init__(client)  # pyright: ignore[reportArgumentType]
        self.has_read = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def app(self, name: str) -> AppSpec | None:
        spec = await super().app(name)
        self.has_read.set()
        await self.may_answer.wait()
        return spec


async def test_without_news_changes_are_seen_within_a_second_or_so(
    redis: Redis, redis_url: str
) -> None:
    store = RedisJobStore(redis)
    store.register_app(spec())
    store.register_app(other())
    client = connect_async(redis_url)
    registry = Registry(AsyncJobStore(client))
    assert await registry.find(APP) == spec()
    assert await registry.find(OTHER) == other()
    store.register_app(spec(queue_limit=7))
    store.unregister_app(OTHER)
    assert await registry.find(APP) == spec()  # nobody has told it
    await registry.refresh()
    assert await registry.find(APP) == spec(queue_limit=7)
    assert await registry.find(OTHER) is None
    # And what was missed before a subscription is not believed after it.
    store.register_app(spec(queue_limit=8))
    registry.follow()
    assert await registry.find(APP) == spec(queue_limit=8)
    await client.aclose()


def test_keys_are_asked_for_under_an_apps_name_too(store: RedisJobStore, redis_url: str) -> None:
    store.register_app(spec())
    with HttpApp(gateway.create_app(edge_settings(redis_url, is_key_required=True))) as app:
        for name in (APP, "sd-nowhere"):
            assert generate(app, name).status_code == 401
            assert app.http.get(f"/{name}/v1/models").status_code == 401
        assert app.http.get(f"/{APP}/v1/health").status_code == 200
        assert app.http.get(f"/{APP}/docs").status_code == 200
