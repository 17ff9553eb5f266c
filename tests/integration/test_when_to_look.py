"""What an answer over HTTP promises: Retry-After, position, Preference-Applied."""

import math
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from redis import Redis

from api import gateway
from api.estimate import MAX_LOOK
from sdserve import keys
from sdserve.api_keys import Token
from sdserve.apps import AppState
from sdserve.generation import GenerationParams
from sdserve.pace import Measured, Work
from sdserve.store import RedisJobStore
from tests.fake_engine import loads
from tests.http_app import GENERATE, PROMPT, HttpApp, answer, edge_settings, one_app
from tests.keys import bearer, create_key
from tests.store_world import World
from tests.values import APP, params, replica_settings, spec
from tests.waiting import until
from workers.puller import Puller

pytestmark = pytest.mark.integration

ASYNC = {"Prefer": "respond-async"}
STEP = 0.02  # seconds, of the replica that takes its time


@pytest.fixture
def world(redis: Redis) -> World:
    return World(RedisJobStore(redis), redis)


@pytest.fixture
def app(redis_url: str, redis: Redis) -> Iterator[HttpApp]:
    redis.hset(keys.APPS, APP, spec().to_json())
    with HttpApp(one_app(spec(), edge_settings(redis_url))) as one:
        yield one


@pytest.fixture
def rest(redis_url: str) -> Iterator[HttpApp]:
    """The gateway."""
    with HttpApp(gateway.create_app(edge_settings(redis_url))) as one:
        yield one


@pytest.fixture
def replica(world: World, redis_url: str, app: HttpApp) -> Iterator[None]:
    """A ready replica whose steps take STEP."""

    def on_step(_of: GenerationParams) -> None:
        time.sleep(STEP)

    puller = Puller(spec(), replica_settings(redis_url), born=time.monotonic(), load=loads(on_step))
    until(lambda: world.store.app_status(APP).state is AppState.READY)
    yield
    puller.stop()


def submit(app: HttpApp, token: Token | None = None, **body: Any) -> httpx.Response:
    headers = ASYNC | (bearer(token) if token else {})
    accepted = app.http.post(GENERATE, json={**PROMPT, **body}, headers=headers)
    assert accepted.status_code == 202, accepted.text
    return accepted


def learn(world: World, app: HttpApp, seconds: float) -> None:
    """Let the app finish a job as PROMPT is, which takes so long."""
    submit(app)
    measured = Measured(
        work=Work.of(params()), denoise_seconds=seconds, picture_seconds=1e-6, file_seconds=1e-6
    )
    world.succeed(world.claim(), measured=measured)


def is_honest(told: httpx.Response) -> bool:
    """Whether Retry-After is the ETA that stands in the body, within 1 s and a minute."""
    eta = told.json()["eta_seconds"]
    assert eta is not None
    return int(told.headers["Retry-After"]) == min(MAX_LOOK, max(1, math.ceil(eta)))


@pytest.mark.parametrize(("seconds", "expected"), [(0.05, 1), (7.0, 7), (300.0, 60)])
def test_while_it_is_queued_retry_after_is_the_eta(
    app: HttpApp, rest: HttpApp, world: World, seconds: float, expected: int
) -> None:
    learn(world, app, seconds)
    world.beat(state=AppState.READY)
    accepted = submit(app)
    assert is_honest(accepted)
    assert expected <= int(accepted.headers["Retry-After"]) <= min(expected + 1, MAX_LOOK)
    path = accepted.headers["Location"]
    for where in (app, rest):
        assert is_honest(where.http.get(path))
    second = submit(app)  # with the same work before it
    assert second.json()["eta_seconds"] == pytest.approx(
        2 * accepted.json()["eta_seconds"], abs=0.2
    )
    assert is_honest(second)


def test_an_end_has_no_time_to_look_again(app: HttpApp, world: World) -> None:
    path = submit(app).headers["Location"]
    assert "Retry-After" in app.http.get(path).headers
    world.succeed(world.claim())
    assert "Retry-After" not in app.http.get(path).headers


def test_who_looks_again_when_told_finds_the_job_done_or_nearer(
    app: HttpApp, replica: None
) -> None:
    warm = submit(app, num_inference_steps=20).headers["Location"]
    until(lambda: app.http.get(warm).json()["status"] == "succeeded")
    paths = [submit(app, num_inference_steps=40).headers["Location"] for _ in range(5)]
    told, looks = app.http.get(paths[-1]), list[tuple[int, int, int]]()
    while told.json()["status"] != "succeeded":
        looks.append(nearness(told.json()))
        assert is_honest(told)
        time.sleep(int(told.headers["Retry-After"]))  # what is promised is a time
        told = app.http.get(paths[-1])
    # It goes by the whole time, so it takes few looks however long the queue; each was worth it.
    assert 1 <= len(looks) <= 5
    assert looks == sorted(set(looks))
    assert [app.http.get(path).json()["status"] for path in paths] == ["succeeded"] * 5


def nearness(job: dict[str, Any]) -> tuple[int, int, int]:
    """Grows as a job gets nearer to its end."""
    position = job["position"]
    return job["status"] == "running", -(position or 0), job["progress"]["step"]


def test_position_is_the_place_by_fair_share(app: HttpApp, world: World) -> None:
    ann, bob = (create_key(world.store, name) for name in ("ann", "bob"))
    jobs = dict[str, tuple[str, Token]]()

    def accepted_at(name: str, token: Token) -> int:
        told = submit(app, token).json()
        jobs[name] = told["id"], token
        return told["position"]

    def places() -> dict[str, int]:
        told = {
            name: app.http.get(f"/v1/jobs/{job_id}", headers=bearer(token)).json()
            for name, (job_id, token) in jobs.items()
        }
        return {name: job["position"] for name, job in told.items() if job["status"] == "queued"}

    assert [accepted_at(f"ann {number}", ann) for number in (1, 2, 3)] == [0, 1, 2]
    assert accepted_at("bob 1", bob) == 1  # his share is as large: he does not wait for all hers
    assert accepted_at("bob 2", bob) == 3
    expected = ["ann 1", "bob 1", "ann 2", "bob 2", "ann 3"]
    while expected:
        assert places() == {name: place for place, name in enumerate(expected)}
        assert world.claim().id == jobs[expected.pop(0)][0]  # and so they are run
    assert places() == {}


def test_priorities_order_the_jobs_of_one_key(app: HttpApp, world: World) -> None:
    ann, bob = (create_key(world.store, name) for name in ("ann", "bob"))
    names = dict[str, str]()

    def submitted(name: str, token: Token, priority: int) -> int:
        told = submit(app, token, priority=priority).json()
        names[told["id"]] = name
        return told["position"]

    submitted("ann 1", ann, 0)
    submitted("ann 2", ann, 0)
    submitted("bob, whenever", bob, -5)
    assert submitted("ann, urgent", ann, 5) == 0
    submitted("bob 1", bob, 0)
    order = [names[world.claim().id] for _ in range(5)]
    assert [name for name in order if name.startswith("ann")] == ["ann, urgent", "ann 1", "ann 2"]
    assert [name for name in order if name.startswith("bob")] == ["bob 1", "bob, whenever"]
    assert {"ann, urgent", "bob 1"} == set(order[:2])  # nobody's urgency moves him before others


@pytest.mark.parametrize(
    ("lines", "of_202"),
    [
        (["respond-async", "wait=0"], "respond-async, wait=0"),
        (["wait=0", "respond-async"], "respond-async, wait=0"),
        (['x; y="a, wait=60"', "wait=0, wait=60", "respond-async; z"], "respond-async, wait=0"),
        (["handling=lenient", "respond-async", "wait=soon"], "respond-async"),
        (["handling=lenient", "wait=0"], "wait=0"),
    ],
)
def test_several_prefer_lines_are_one_list(
    app: HttpApp, world: World, lines: list[str], of_202: str
) -> None:
    world.beat(state=AppState.READY)
    told = app.http.post(GENERATE, json=PROMPT, headers=[("Prefer", line) for line in lines])
    assert told.status_code == 202
    assert told.headers["Preference-Applied"] == of_202


def test_a_wait_on_a_line_of_its_own_is_held_and_respond_async_is_not_applied_to_a_200(
    app: HttpApp, world: World
) -> None:
    with app.call_generate("Prefer: respond-async", "Prefer: wait=60") as client:
        until(lambda: world.store.app_status(APP).queued)
        world.succeed(world.claim())
        status, headers, _ = answer(client)
    assert (status, headers["preference-applied"]) == (200, "wait=60")


def test_who_asks_for_a_202_gets_one_also_of_a_job_that_has_ended(
    app: HttpApp, world: World
) -> None:
    named = ASYNC | {"Idempotency-Key": "k"}
    first = app.generate(named).json()
    world.succeed(world.claim())
    again = app.generate(named)
    assert again.status_code == 202
    assert again.headers["Preference-Applied"] == "respond-async"
    assert again.headers["Location"] == f"/v1/jobs/{first['id']}"
    assert "Retry-After" not in again.headers
    assert again.json() == app.http.get(f"/v1/jobs/{first['id']}").json()
    assert again.json()["status"] == "succeeded"
