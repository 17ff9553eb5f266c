"""How many requests one client may hold open."""

import socket
from collections.abc import Iterator
from datetime import timedelta

import pytest
from redis import Redis

from api import gateway
from sdserve.api_keys import Token
from sdserve.store import RedisJobStore
from tests.http_app import GENERATE, PROMPT, HttpApp, edge_settings, one_app
from tests.keys import bearer, create_key
from tests.store_world import World
from tests.values import APP, spec
from tests.waiting import until

pytestmark = pytest.mark.integration

MOST, MOST_OF_ALL = 3, 5


@pytest.fixture
def world(redis: Redis) -> World:
    return World(RedisJobStore(redis), redis)


@pytest.fixture(params=["app", "gateway"])
def app(request: pytest.FixtureRequest, redis_url: str) -> Iterator[HttpApp]:
    settings = edge_settings(redis_url, max_held=MOST_OF_ALL, max_held_per_key=MOST)
    is_app = request.param == "app"
    asgi = one_app(spec(), settings) if is_app else gateway.create_app(settings)
    with HttpApp(asgi) as one:
        yield one


def hold(app: HttpApp, path: str, token: Token | None = None) -> socket.socket:
    """A request that is held from now on."""
    held = app.app.state.held
    before = held.count
    key = "".join(f"\n{name}: {value}" for name, value in bearer(token).items()) if token else ""
    client = app.call(f"GET {path} HTTP/1.1\nHost: localhost{key}")
    until(lambda: held.count == before + 1)
    return client


@pytest.mark.parametrize("way", ["?wait=60", "/events"])
def test_a_key_holds_so_many_and_another_its_own(way: str, app: HttpApp, world: World) -> None:
    ann, bob = create_key(world.store, "ann"), create_key(world.store, "bob")
    mine, his = (f"/v1/jobs/{world.submit(client=token.key_id).job_id}" for token in (ann, bob))
    held = [hold(app, mine + way, ann) for _ in range(MOST)]
    for path in (f"{mine}?wait=1", f"{mine}/events"):
        refused = app.http.get(path, headers=bearer(ann))
        assert refused.status_code == 429
        assert refused.json()["type"].endswith(":too_many_held")
        assert int(refused.headers["Retry-After"]) >= 1
    # What is not held is answered, and so is another.
    assert app.http.get(mine, headers=bearer(ann)).status_code == 200
    held.append(hold(app, his + way, bob))
    # Whoever hangs up makes room.
    held.pop(0).close()
    until(lambda: app.http.get(f"{mine}?wait=0.1", headers=bearer(ann)).status_code == 200)
    for client in held:
        client.close()
    until(lambda: app.app.state.held.count == 0)


def test_all_clients_together_hold_so_many(app: HttpApp, world: World) -> None:
    job = f"/v1/jobs/{world.submit().job_id}"
    held = [hold(app, f"{job}?wait=60") for _ in range(MOST_OF_ALL)]
    refused = app.http.get(f"{job}?wait=1")
    assert (refused.status_code, refused.json()["type"].rpartition(":")[2]) == (503, "server_full")
    assert app.http.get(job).status_code == 200
    for client in held:
        client.close()


def test_a_refused_request_holds_nothing(app: HttpApp, world: World) -> None:
    ann = create_key(world.store, "ann")
    for path in ("/v1/jobs/x?wait=9", "/v1/jobs/x/events", "/v1/jobs/x?wait=1000"):
        for _ in range(2 * MOST):
            assert app.http.get(path, headers=bearer(ann)).status_code in (404, 422)
    assert app.app.state.held.count == 0


def test_who_hangs_up_with_an_idempotency_key_makes_room_too(redis_url: str, world: World) -> None:
    settings = edge_settings(redis_url, sync_wait=timedelta(seconds=60))
    with HttpApp(one_app(spec(), settings)) as app:
        client = app.call_generate("Prefer: wait=60", "Idempotency-Key: k")
        until(lambda: app.app.state.held.count == 1)
        client.close()
        until(lambda: app.app.state.held.count == 0, limit=30)  # it would be held for 60 s
        assert world.store.app_status(APP).queued == 1


def test_a_generate_that_cannot_be_held_is_a_202(redis_url: str, world: World) -> None:
    ann = create_key(world.store, "ann")
    settings = edge_settings(redis_url, max_held_per_key=1, sync_wait=timedelta(seconds=60))
    with HttpApp(one_app(spec(), settings)) as app:
        job = f"/v1/jobs/{world.submit(client=ann.key_id).job_id}"
        with hold(app, f"{job}?wait=60", ann):
            headers = bearer(ann) | {"Prefer": "wait=60"}
            answer = app.http.post(GENERATE, json=PROMPT, headers=headers)
            assert answer.status_code == 202
            assert "Preference-Applied" not in answer.headers
