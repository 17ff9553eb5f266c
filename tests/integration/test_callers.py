"""Who asks: API keys over HTTP, and jobs that belong to one of them."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from redis import Redis

from api import gateway
from sdserve.api_keys import Role, Token, new_token
from sdserve.jobs import JobFailure
from sdserve.key_operations import RevokeKey, RotateKey
from sdserve.operations import Drain
from sdserve.store import RedisJobStore
from tests.http_app import GENERATE, PROMPT, HttpApp, edge_settings, one_app
from tests.http_app import answer as reply
from tests.keys import bearer, create_key
from tests.store_world import World
from tests.values import APP, JOB_TTL, spec

pytestmark = pytest.mark.integration

UNAUTHORIZED = "urn:sdserve:problem:unauthorized"
OPEN = ("/v1/health", "/v1/health/live", "/v1/health/ready")  # to probes, which have no key
ASYNC = {"Prefer": "respond-async"}


@pytest.fixture
def world(redis: Redis) -> World:
    return World(RedisJobStore(redis), redis)


@pytest.fixture
def app(redis_url: str) -> Iterator[HttpApp]:
    """Where no key is required."""
    with HttpApp(one_app(spec(), edge_settings(redis_url))) as one:
        yield one


@pytest.fixture
def locked(redis_url: str) -> Iterator[HttpApp]:
    """Where one is."""
    settings = edge_settings(redis_url, is_key_required=True)
    with HttpApp(one_app(spec(), settings)) as one:
        yield one


@pytest.fixture
def locked_gateway(redis_url: str) -> Iterator[HttpApp]:
    settings = edge_settings(redis_url, is_key_required=True)
    with HttpApp(gateway.create_app(settings)) as one:
        yield one


def submit(app: HttpApp, token: Token | None) -> str:
    accepted = app.generate(ASYNC | (bearer(token) if token else {}))
    assert accepted.status_code == 202, accepted.text
    return accepted.json()["id"]


def refused(answer: httpx.Response) -> bool:
    problem: dict[str, Any] = answer.json()
    return (answer.status_code, problem["type"]) == (401, UNAUTHORIZED)


def routes_of(app: HttpApp) -> list[tuple[str, str]]:
    """Method and path of every route, and of one that is not there."""
    described = [
        (method.upper(), path.format_map({"job_id": "x", "batch_id": "x", "number": "0"}))
        for path, methods in app.app.openapi()["paths"].items()
        for method in methods
    ]
    return [*described, ("POST", "/sd-not-deployed/v1/generate"), ("GET", "/v1/nothing")]


@pytest.mark.parametrize("name", ["locked", "locked_gateway"])
def test_every_route_asks_for_a_key_except_health(
    name: str, world: World, request: pytest.FixtureRequest
) -> None:
    app: HttpApp = request.getfixturevalue(name)
    token = create_key(world.store, "ann")
    for method, path in routes_of(app):
        without = app.http.request(method, path, json=PROMPT)
        if path in OPEN:
            assert without.status_code == 200
        else:
            assert refused(without), (method, path)
            with_key = app.http.request(method, path, json=PROMPT, headers=bearer(token))
            assert with_key.status_code != 401, (method, path)
    for path in ("/docs", "/openapi.json"):
        assert app.http.get(path).status_code == 200


@pytest.mark.parametrize("name", ["locked", "locked_gateway"])
@pytest.mark.parametrize("kind", ["application/json", "application/jsonl"])
@pytest.mark.parametrize("body", [b'{"prompt": ', b'{"no such field": 1}', b"x" * (2**20 + 1)])
def test_nothing_of_a_body_is_looked_at_without_a_key(
    body: bytes, kind: str, name: str, request: pytest.FixtureRequest
) -> None:
    app: HttpApp = request.getfixturevalue(name)
    for method, path in routes_of(app):
        if path not in OPEN:
            headers = {"Content-Type": kind}
            answer = app.http.request(method, path, content=body, headers=headers)
            assert refused(answer), (method, path)


def test_a_body_is_not_waited_for_without_a_key(locked: HttpApp) -> None:
    head = f"POST {GENERATE} HTTP/1.1\nHost: localhost\nContent-Type: application/json"
    with locked.call(f"{head}\nContent-Length: 100") as client:
        assert reply(client)[0] == 401


@pytest.mark.parametrize("path", ["/v1/health", "/v1/health/ready"])
def test_how_a_server_is_built_only_an_admin_sees(
    path: str, app: HttpApp, locked: HttpApp, world: World
) -> None:
    ann, root = create_key(world.store, "ann"), create_key(world.store, "root", Role.ADMIN)
    world.beat()
    for headers in ({}, bearer(ann)):
        shown = locked.http.get(path, headers=headers).json()
        assert (shown["state"], shown["replicas"]) == ("ready", None)
    for server, headers in ((locked, bearer(root)), (app, {})):
        (replica,) = server.http.get(path, headers=headers).json()["replicas"]
        assert replica["pid"]
    assert refused(locked.http.get(path, headers={"Authorization": "Bearer x"}))
    failure = JobFailure(code="app_broken", message="/secret/path is no file.")
    world.run(Drain(app=APP, failure=failure, job_ttl=JOB_TTL, broken=True))
    for headers in ({}, bearer(ann)):
        broken = locked.http.get(path, headers=headers)
        assert (broken.status_code, "/secret/path" in broken.text) == (503, False)
    assert "/secret/path" in locked.http.get(path, headers=bearer(root)).json()["detail"]


def test_who_shows_nothing_is_told_how(locked: HttpApp) -> None:
    answer = locked.generate()
    assert refused(answer)
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="sdserve"'
    assert "api_keys.sh create" in answer.json()["detail"]


@pytest.mark.parametrize("name", ["app", "locked"])
def test_a_token_that_is_not_valid_is_refused_everywhere(
    name: str, world: World, request: pytest.FixtureRequest
) -> None:
    """Also where none is needed: whoever shows one believes to be somebody."""
    app: HttpApp = request.getfixturevalue(name)
    token, revoked = create_key(world.store, "ann"), create_key(world.store, "bob")
    world.run(RevokeKey(key_id=revoked.key_id))
    wrong = ["x", "sd_nobody_" + token.secret, new_token(token.key_id).text, revoked.text]
    for text in wrong:
        answer = app.generate({"Authorization": f"Bearer {text}"})
        assert refused(answer), text
        assert answer.headers["WWW-Authenticate"].endswith('error="invalid_token"')
        assert token.secret not in answer.text
    assert app.generate(ASYNC | bearer(token)).status_code == 202


def test_a_rotated_key_is_the_same_client(locked: HttpApp, world: World) -> None:
    old = create_key(world.store, "ann")
    job_id = submit(locked, old)
    new = new_token(old.key_id)
    world.run(RotateKey(key_id=old.key_id, digest=new.digest, overlap=timedelta(0)))
    assert refused(locked.http.get(f"/v1/jobs/{job_id}", headers=bearer(old)))
    assert locked.http.get(f"/v1/jobs/{job_id}", headers=bearer(new)).status_code == 200


def test_a_job_is_its_callers(app: HttpApp, world: World) -> None:
    token = create_key(world.store, "ann")
    assert world.view(submit(app, token)).client == token.key_id
    assert world.view(submit(app, None)).client == ""


def test_anothers_job_does_not_exist(app: HttpApp, world: World) -> None:
    """Not to look at, wait for, collect or cancel; the owner has lost nothing by it."""
    ann, bob = create_key(world.store, "ann"), create_key(world.store, "bob")
    job_id = submit(app, ann)
    unknown = app.http.get("/v1/jobs/01a20894-457f-76c7-bff3-ca8bf993514c").json()
    for other in (bearer(bob), {}):
        for method, path in (
            ("GET", ""), ("GET", "?wait=30"), ("GET", "/image"), ("GET", "/image/0"),
            ("DELETE", ""),
        ):  # fmt: skip
            answer = app.http.request(method, f"/v1/jobs/{job_id}{path}", headers=other)
            assert answer.status_code == 404, (method, path)
            told, known = answer.json(), {"type": unknown["type"], "title": unknown["title"]}
            assert {key: told[key] for key in known} == known
            assert told["detail"] == unknown["detail"].replace(
                "01a20894-457f-76c7-bff3-ca8bf993514c", job_id
            )
    world.succeed(world.claim())
    for other in (bearer(bob), {}):
        answer = app.http.get(f"/v1/jobs/{job_id}/image", headers=other)
        assert answer.status_code == 404
    mine = app.http.get(f"/v1/jobs/{job_id}", headers=bearer(ann)).json()
    assert mine["status"] == "succeeded"
    assert app.http.get(f"/v1/jobs/{job_id}/image", headers=bearer(ann)).content == b"png"


@pytest.mark.parametrize("header", ["Bearer", "Basic YTpi", "sd_abc_def"])
def test_what_is_no_key_is_not_taken_for_nobody(app: HttpApp, header: str) -> None:
    assert app.http.get("/v1/jobs", headers={"Authorization": header}).status_code == 401


def test_a_job_without_a_key_is_not_a_keys(app: HttpApp, world: World) -> None:
    job_id = submit(app, None)
    token = create_key(world.store, "ann")
    assert app.http.get(f"/v1/jobs/{job_id}", headers=bearer(token)).status_code == 404
    assert app.http.get(f"/v1/jobs/{job_id}").status_code == 200


def test_an_admin_sees_and_cancels_every_job(app: HttpApp, world: World) -> None:
    ann = create_key(world.store, "ann")
    root = create_key(world.store, "root", Role.ADMIN)
    for token in (ann, None):
        path = f"/v1/jobs/{submit(app, token)}"
        assert app.http.get(path, headers=bearer(root)).status_code == 200
        assert app.http.delete(path, headers=bearer(root)).json()["status"] == "cancelled"


def test_the_same_idempotency_key_of_two_callers_is_two_jobs(app: HttpApp, world: World) -> None:
    ann, bob = create_key(world.store, "ann"), create_key(world.store, "bob")
    key = {"Idempotency-Key": "k"} | ASYNC
    jobs = [app.generate(key | bearer(token)).json()["id"] for token in (ann, bob, ann)]
    assert jobs[0] == jobs[2] != jobs[1]


def test_the_scheme_is_in_the_description(app: HttpApp) -> None:
    described = app.http.get("/openapi.json").json()
    assert described["components"]["securitySchemes"]["apiKey"]["scheme"] == "bearer"
    assert described["paths"][GENERATE]["post"]["security"] == [{"apiKey": []}]
    assert "security" not in described["paths"]["/v1/health"]["get"]


# --- lists ---------------------------------------------------------------------------------------


def listed(server: HttpApp, token: Token | None, **query: str | int) -> dict[str, Any]:
    headers = bearer(token) if token else {}
    answer = server.http.get("/v1/jobs", params=query, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_list_has_ones_own_jobs_without_pictures(app: HttpApp, world: World) -> None:
    ann, bob = create_key(world.store, "ann"), create_key(world.store, "bob")
    mine = [submit(app, ann) for _ in range(3)][::-1]
    submit(app, bob)
    world.succeed(world.claim())
    first = listed(app, ann, limit=2)
    assert [job["id"] for job in first["data"]] == mine[:2]
    assert first["data"][0]["phase"] is not None
    rest = listed(app, ann, limit=2, cursor=first["next_cursor"])
    assert ([job["id"] for job in rest["data"]], rest["next_cursor"]) == (mine[2:], None)
    done = rest["data"][0]
    assert (done["status"], done["result"]["image"]) == ("succeeded", None)
    assert [job["id"] for job in listed(app, ann, status="succeeded")["data"]] == mine[2:]
    assert listed(app, None)["data"] == []
    everything = listed(app, create_key(world.store, "root", Role.ADMIN))
    assert len(everything["data"]) == 4


def test_an_apps_list_has_only_its_jobs(app: HttpApp, world: World, redis_url: str) -> None:
    ann = create_key(world.store, "ann")
    here = submit(app, ann)
    there = world.submit(client=ann.key_id, app="sd-other").job_id
    assert [job["id"] for job in listed(app, ann)["data"]] == [here]
    assert listed(app, ann, app="sd-other")["data"] == []
    with HttpApp(gateway.create_app(edge_settings(redis_url))) as front:
        assert [job["id"] for job in listed(front, ann)["data"]] == [there, here]
        assert [job["id"] for job in listed(front, ann, app="sd-other")["data"]] == [there]


@pytest.mark.parametrize(
    ("query", "status"),
    [({"cursor": "x"}, 422), ({"limit": 0}, 422), ({"limit": 101}, 422), ({"status": "x"}, 422)],
)
def test_a_list_says_what_is_wrong_with_its_query(
    query: dict[str, str], status: int, app: HttpApp
) -> None:
    answer = app.http.get("/v1/jobs", params=query)
    assert answer.status_code == status
    assert next(iter(query)) in answer.json()["detail"]


def test_anothers_expired_job_never_was(app: HttpApp, world: World) -> None:
    ann, bob = create_key(world.store, "ann"), create_key(world.store, "bob")
    root = create_key(world.store, "root", Role.ADMIN)
    job_id = submit(app, ann)
    world.cancel(job_id, timedelta(0))
    for token, status in ((ann, 410), (root, 410), (bob, 404)):
        assert app.http.get(f"/v1/jobs/{job_id}", headers=bearer(token)).status_code == status
    assert app.http.get(f"/v1/jobs/{job_id}").status_code == 404
