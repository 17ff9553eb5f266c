"""`GET /v1/usage`: whose it is, how it is added up, and what it costs the store."""

import csv
import io
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from redis import Redis

from api import gateway
from sdserve import keys
from sdserve.api_keys import Role, Token
from sdserve.async_store import DAYS_SEARCHED, FIELDS_SEARCHED
from sdserve.jobs import JobStatus
from sdserve.store import RedisJobStore
from sdserve.usage import KEPT_DAYS, Spent, number_of
from tests.http_app import HttpApp, edge_settings
from tests.keys import bearer, create_key
from tests.store_world import World
from tests.values import APP, finish

pytestmark = pytest.mark.integration

OTHER = "sd-other"
SPENT = Spent(steps=20, gpu_ms=1500, cpu_ms=250, energy_mj=350_000)
NONE = {
    "jobs_succeeded": 0, "jobs_failed": 0, "jobs_cancelled": 0, "images": 0, "steps": 0,
    "gpu_seconds": 0, "cpu_seconds": 0, "energy_joules": 0, "result_bytes": 0,
}  # fmt: skip
ONE = {**NONE, "steps": 20, "gpu_seconds": 1.5, "cpu_seconds": 0.25, "energy_joules": 350}
SUCCESS = {**ONE, "jobs_succeeded": 1, "images": 1, "result_bytes": 3}
FAILURE = {**ONE, "jobs_failed": 1}


def times(amounts: dict[str, Any], count: int) -> dict[str, Any]:
    return {name: amount * count for name, amount in amounts.items()}


def together(*parts: dict[str, Any]) -> dict[str, Any]:
    return {name: sum(part[name] for part in parts) for name in NONE}


@pytest.fixture
def world(redis: Redis) -> World:
    return World(RedisJobStore(redis), redis)


@pytest.fixture
def app(redis_url: str) -> Iterator[HttpApp]:
    with HttpApp(gateway.create_app(edge_settings(redis_url))) as one:
        yield one


class Keys:
    """Of two users and an admin; ann had two successes and a failure, bob a success."""

    def __init__(self, world: World) -> None:
        self.ann, self.bob = (create_key(world.store, name) for name in ("ann", "bob"))
        self.root = create_key(world.store, "root", Role.ADMIN)
        for client, name in ((self.ann, APP), (self.ann, OTHER), (self.bob, APP), (None, APP)):
            world.submit(client=client.key_id if client else "", app=name)
            world.succeed(world.claim(app=name), app=name, spent=SPENT)
        world.submit(client=self.ann.key_id)
        world.run(finish(world.claim().id, 1, JobStatus.FAILED, spent=SPENT))


@pytest.fixture
def made(world: World) -> Keys:
    return Keys(world)


def ask(app: HttpApp, token: Token | None, /, **query: str) -> dict[str, Any]:
    answer = app.http.get("/v1/usage", params=query, headers=bearer(token) if token else {})
    assert answer.status_code == 200, answer.text
    return answer.json()


def rows(app: HttpApp, token: Token | None, /, **query: str) -> dict[str, dict[str, Any]]:
    """Amounts by group; their sum is the total."""
    body, by = ask(app, token, **query), query["by"]
    told = {row[by]: {name: row[name] for name in NONE} for row in body["data"]}
    assert body["total"] == together(NONE, *told.values())
    return told


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def test_a_key_sees_its_own_by_app_key_and_day(app: HttpApp, made: Keys) -> None:
    all_of_ann = together(SUCCESS, SUCCESS, FAILURE)
    by_app = {APP: together(SUCCESS, FAILURE), OTHER: SUCCESS}
    assert rows(app, made.ann, by="app") == by_app
    assert rows(app, made.ann, by="key") == {made.ann.key_id: all_of_ann}
    assert list(rows(app, made.ann, by="day").values()) == [all_of_ann]
    assert rows(app, made.ann, by="app", app=OTHER) == {OTHER: SUCCESS}
    assert rows(app, made.ann, by="key", app=OTHER) == {made.ann.key_id: SUCCESS}
    assert rows(app, made.ann, by="key", key=made.ann.key_id) == {made.ann.key_id: all_of_ann}


def test_another_keys_usage_does_not_exist(app: HttpApp, made: Keys) -> None:
    for by in ("key", "app", "day"):
        for other in (made.ann.key_id, "", "no-such-key", "*"):
            assert rows(app, made.bob, by=by, key=other) == {}
        assert rows(app, made.bob, by=by, key=made.bob.key_id)
    assert rows(app, None, by="key") == {"": SUCCESS}
    assert rows(app, None, by="key", key=made.ann.key_id) == {}


def test_an_admin_sees_all(app: HttpApp, made: Keys) -> None:
    everyone = {
        "": SUCCESS,
        made.ann.key_id: together(SUCCESS, SUCCESS, FAILURE),
        made.bob.key_id: SUCCESS,
    }
    assert rows(app, made.root, by="key") == everyone
    by_app = {APP: together(*[SUCCESS] * 3, FAILURE), OTHER: SUCCESS}
    assert rows(app, made.root, by="app") == by_app
    assert list(rows(app, made.root, by="day").values()) == [together(*everyone.values())]
    assert rows(app, made.root, by="key", app=OTHER) == {made.ann.key_id: SUCCESS}
    assert rows(app, made.root, by="key", key="") == {"": SUCCESS}
    assert rows(app, made.root, by="app", key=made.bob.key_id) == {APP: SUCCESS}
    for pattern in ("*", "?*", "[a-z]*", "\\*"):
        assert rows(app, made.root, by="app", key=pattern) == {}
        assert rows(app, made.root, by="key", app=pattern) == {}


def test_days_are_counted_from_the_first_to_the_last(app: HttpApp, redis: Redis) -> None:
    days = [date(2026, 1, 31) + timedelta(days=k) for k in range(60)]
    for k, day in enumerate(days):
        redis.hset(
            f"{keys.USAGE}{number_of(day)}", mapping={"||steps": k + 1, "|sd-a|steps": k + 1}
        )
    told = rows(app, None, by="day", **{"from": "2026-02-01", "to": "2026-03-30"})
    assert {day: row["steps"] for day, row in told.items()} == {
        day.isoformat(): k + 1 for k, day in enumerate(days) if 1 <= k <= 58
    }
    told = rows(app, None, by="app", **{"from": "2026-01-31", "to": "2026-03-31"})
    assert told["sd-a"]["steps"] == sum(range(1, 61))
    assert rows(app, None, by="day", to="2025-06-01") == {}
    body = ask(app, None, to="2026-03-02")
    assert (body["by"], body["from"], body["to"]) == ("day", "2026-02-01", "2026-03-02")
    assert ask(app, None)["to"] == today()


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"from": "2026-01-02", "to": "2026-01-01"}, "from"),
        ({"from": "2024-01-01", "to": "2026-01-01"}, "from"),
        ({"from": "yesterday"}, "from"),
        ({"to": "0"}, "to"),
        ({"to": "2026-02-30"}, "to"),
        ({"to": "2026-11-24T00:00:00"}, "to"),
        ({"by": "week"}, "by"),
        ({"format": "xml"}, "format"),
        ({"app": "a" * 201}, "app"),
    ],
)
def test_a_bad_question_names_its_field(app: HttpApp, query: dict[str, str], field: str) -> None:
    answer = app.http.get("/v1/usage", params=query)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


def test_the_ends_of_the_calendar_are_dates_too(app: HttpApp, redis: Redis) -> None:
    redis.flushdb()  # of the other tests of this file
    for day in ("0001-01-01", "9999-12-31", "0001-01-10"):
        assert ask(app, None, to=day)["data"] == []
    whole = {"from": "2025-01-01", "to": (date(2025, 1, 1) + timedelta(KEPT_DAYS - 1)).isoformat()}
    assert ask(app, None, by="app", **whole)["data"] == []


@pytest.mark.parametrize(
    ("query", "accept", "is_csv"),
    [
        ({"format": "csv"}, "application/json", True),
        ({}, "text/csv", True),
        ({}, "text/csv;q=1, */*", True),
        ({}, "application/json, text/csv", False),
        ({"format": "json"}, "text/csv", False),
        ({}, "*/*", False),
    ],
)
def test_csv_on_request(
    app: HttpApp, made: Keys, query: dict[str, str], accept: str, is_csv: bool
) -> None:
    headers = bearer(made.root) | {"Accept": accept}
    answer = app.http.get("/v1/usage", params={"by": "app", **query}, headers=headers)
    assert answer.headers["Content-Type"].startswith("text/csv" if is_csv else "application/json")
    if is_csv:
        told = list(csv.DictReader(io.StringIO(answer.text)))
        assert [row.pop("app") for row in told] == [OTHER, APP]
        numbers = [{name: float(value) for name, value in row.items()} for row in told]
        assert numbers == [SUCCESS, together(*[SUCCESS] * 3, FAILURE)]


def test_many_keys_are_read_a_part_at_a_time(app: HttpApp, world: World, redis: Redis) -> None:
    """No command goes through more than a part of a day, and every key is there once."""
    root = create_key(world.store, "root", Role.ADMIN)
    day = number_of(date(2026, 5, 4))
    clients = 3 * FIELDS_SEARCHED
    for number in range(DAYS_SEARCHED + 2):
        fields: dict[Any, Any] = {
            f"k{k}|{name}|steps": k for k in range(clients) for name in ("", "sd-a")
        }
        redis.hset(f"{keys.USAGE}{day + number}", mapping=fields)
    redis.config_resetstat()
    span = {"from": "2026-05-04", "to": "2026-05-13"}
    told = rows(app, root, by="key", **span)
    assert {key: row["steps"] for key, row in told.items()} == {
        f"k{k}": k * (DAYS_SEARCHED + 2) for k in range(clients)
    }
    stats: Any = redis.info("commandstats")
    assert "cmdstat_hgetall" not in stats or stats["cmdstat_hgetall"]["calls"] < 5
    assert stats["cmdstat_hscan"]["usec_per_call"] < 20_000
    assert rows(app, root, by="app", **span)["sd-a"]["steps"] == sum(range(clients)) * 10


def test_a_job_shows_its_bill_however_it_ended(app: HttpApp, world: World) -> None:
    done, failed = world.submit().job_id, world.submit().job_id
    assert app.http.get(f"/v1/jobs/{done}").json()["usage"] is None
    world.succeed(world.claim(), spent=SPENT)
    world.run(finish(world.claim().id, 1, JobStatus.FAILED, spent=SPENT))
    assert app.http.get(f"/v1/jobs/{done}").json()["usage"] == SUCCESS
    assert app.http.get(f"/v1/jobs/{failed}").json()["usage"] == FAILURE
