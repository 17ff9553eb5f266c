"""Batches from the upload to the zip: over HTTP, with a real Redis and feeders; no model."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest
from redis import Redis

from api.gateway import create_app
from sdserve import keys
from sdserve.batch_operations import CloseLines, ViewBatch
from sdserve.batches import BatchLine, dump_lines
from sdserve.limits import BatchLimits, Limits, Quotas
from sdserve.operations import Claim
from sdserve.store import RedisJobStore
from tests.batch_world import Batches, lines
from tests.http_app import HttpApp, edge_settings
from tests.store_world import World
from tests.values import APP, JOB_TTL, LEASE, spec, submit
from tests.waiting import LIMIT, until
from workers.feeder import Feeder
from workers.task_queue import QueueName, task_queue
from workers.tasks import enqueue_feed

pytestmark = pytest.mark.integration

LINES = {"Content-Type": "application/jsonl"}
PNG = b"\x89PNG not really"


class Uploads:
    """A gateway, its store, and whoever feeds and draws."""

    def __init__(self, app: HttpApp, redis: Redis) -> None:
        self.http = app.http
        self.redis = redis
        self.store = RedisJobStore(redis)
        self.world = World(self.store, redis)

    def post(self, lines: list[Any], **options: Any) -> httpx.Response:
        body = "".join(json.dumps(line) + "\n" for line in lines)
        headers = {**LINES, **options.pop("headers", {})}
        params = {"app": APP, **options}
        return self.http.post("/v1/batches", content=body, headers=headers, params=params)

    def make(self, lines: list[Any], **options: Any) -> str:
        answer = self.post(lines, **options)
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def get(self, batch_id: str) -> dict[str, Any]:
        return self.http.get(f"/v1/batches/{batch_id}").json()

    def results(self, batch_id: str, **params: Any) -> list[dict[str, Any]]:
        answer = self.http.get(f"/v1/batches/{batch_id}/results", params=params)
        assert answer.status_code == 200
        return [json.loads(line) for line in answer.text.splitlines()]

    def feeder(self) -> Feeder:
        return Feeder(self.store, limits=Limits(), job_ttl=JOB_TTL, line_ttl=timedelta(minutes=30))

    def draw(self, app: str = APP) -> int:
        """Finish all jobs that wait. Returns how many."""
        claimed = self.store.run(Claim(app=app, replica="r1", count=1000, lease=LEASE))
        for job in claimed:
            self.world.succeed(job, [PNG] * job.params.num_images)
        return len(claimed)


def prompts(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"prompt {n}", "custom_id": f"id {n}", **more} for n in range(1, count + 1)]


@pytest.fixture
def uploads(redis: Redis, redis_url: str) -> Iterator[Uploads]:
    RedisJobStore(redis).register_app(spec(queue_limit=20))
    small = BatchLimits(lines=1000, upload_bytes=2 * 2**20)
    settings = edge_settings(redis_url, limits=Limits(batches=small), max_body_bytes=2**16)
    with HttpApp(create_app(settings)) as app:
        yield Uploads(app, redis)


# --- uploading -----------------------------------------------------------------------------------


def test_a_file_of_lines_is_accepted_as_one_batch(uploads: Uploads) -> None:
    answer = uploads.post([{"prompt": "a", "seed": 5}, *prompts(2)], defaults='{"width": 64}')
    assert answer.status_code == 202
    batch = answer.json()
    assert answer.headers["Location"] == f"/v1/batches/{batch['id']}"
    assert (batch["status"], batch["lines"], batch["counts"]["waiting"]) == ("accepted", 3, 3)
    lines = uploads.results(batch["id"])
    assert [line["status"] for line in lines] == ["waiting"] * 3
    assert (lines[0]["seed"], lines[1]["custom_id"]) == (5, "id 1")
    assert lines[0]["job_id"] is None


def test_json_and_a_plain_list_are_batches_too(uploads: Uploads) -> None:
    whole = {"app": APP, "defaults": {"num_inference_steps": 3}, "lines": prompts(2)}
    for body, params in ((whole, {}), (prompts(2), {"app": APP})):
        answer = uploads.http.post("/v1/batches", json=body, params=params)
        assert (answer.status_code, answer.json()["lines"]) == (202, 2)


@pytest.mark.parametrize("is_json", [False, True])
def test_others_are_answered_while_an_upload_is_packed(
    is_json: bool, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    packing, go_on = threading.Event(), threading.Event()
    answers = list[httpx.Response]()

    def dump(lines: list[BatchLine]) -> bytes:
        packing.set()
        assert go_on.wait(LIMIT)
        return dump_lines(lines)

    def send() -> None:
        lines, query = prompts(250), {"app": APP}
        answers.append(
            uploads.http.post("/v1/batches", json=lines, params=query)
            if is_json
            else uploads.post(lines)
        )

    monkeypatch.setattr("api.batch_upload.dump_lines", dump)
    upload = threading.Thread(target=send)
    upload.start()
    assert packing.wait(LIMIT)
    try:
        assert uploads.http.get("/v1/health", timeout=20).status_code == 200
    finally:
        go_on.set()
        upload.join(LIMIT)
    assert [answer.status_code for answer in answers] == [202]


def test_a_batch_is_bounded_with_its_defaults_in_every_line(redis: Redis, redis_url: str) -> None:
    RedisJobStore(redis).register_app(spec(queue_limit=20))
    limits = Limits(batches=BatchLimits(upload_bytes=2**16))
    with HttpApp(create_app(edge_settings(redis_url, limits=limits))) as app:
        uploads = Uploads(app, redis)
        lines, defaults = [{"prompt": "a"}] * 1000, json.dumps({"negative_prompt": "x" * 2000})
        refused = uploads.post(lines, defaults=defaults)
        assert refused.status_code == 413
        assert refused.json()["type"].endswith(":batch_too_large")
        assert "SD_MAX_BATCH_BYTES" in refused.json()["detail"]
        assert not redis.keys("sd:batch*")
        assert uploads.post(lines[:100], defaults=defaults).is_success


def test_every_fault_is_named_by_its_line_and_nothing_is_accepted(uploads: Uploads) -> None:
    faulty = [
        {"prompt": "good"},
        {"prompt": ""},
        {"prompt": "a", "width": 100},
        {"prompt": "a", "app": "sd-unknown"},
        {"prompt": "a", "sede": 1},
        ["no object"],
    ]
    answer = uploads.post(faulty)
    assert answer.status_code == 422
    found = [(fault["line"], fault["field"]) for fault in answer.json()["errors"]]
    assert found == [(2, "prompt"), (3, "width"), (4, "app"), (5, "sede"), (6, "line")]
    assert uploads.http.get("/v1/batches").json()["data"] == []
    assert uploads.redis.keys(keys.BATCH + "*") == []


def test_a_webhook_that_cannot_be_told_is_a_fault_of_its_line(uploads: Uploads) -> None:
    answer = uploads.post([*prompts(1), {"prompt": "a", "webhook": "https://example.com/hook"}])
    assert answer.status_code == 422
    assert [(fault["line"], fault["field"]) for fault in answer.json()["errors"]] == [
        (2, "webhook")
    ]


def test_at_most_twenty_faults_are_named(uploads: Uploads) -> None:
    answer = uploads.post([{"prompt": ""}] * 50)
    assert (answer.status_code, len(answer.json()["errors"])) == (422, 20)


@pytest.mark.parametrize(
    ("body", "params", "status"),
    [
        (b"", {"app": APP}, 422),
        (b'{"prompt": "a"}\n\n{"prompt": "b"}\n', {"app": APP}, 422),
        (b'{"prompt": "a"}\n', {}, 422),
        (b'{"prompt": "a"}\n', {"app": APP, "defaults": "[]"}, 422),
        (b'{"prompt": "a"}\n', {"app": APP, "defaults": '{"nonsense": 1}'}, 422),
        (b'{"prompt": "' + b"x" * 100_000 + b'"}\n', {"app": APP}, 422),
        (b'{"prompt": "\xff"}\n', {"app": APP}, 422),
        (b'{"prompt": "a"}\n' * 1001, {"app": APP}, 413),
        (b" " * (2 * 2**20 + 1), {"app": APP}, 413),
    ],
)
def test_what_is_no_batch_is_refused(
    uploads: Uploads, body: bytes, params: dict[str, str], status: int
) -> None:
    answer = uploads.http.post("/v1/batches", content=body, headers=LINES, params=params)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_another_kind_of_body_is_refused_with_the_right_ones(uploads: Uploads) -> None:
    headers = {"Content-Type": "text/csv"}
    answer = uploads.http.post("/v1/batches", content=b"prompt\na\n", headers=headers)
    assert answer.status_code == 415
    assert "application/jsonl" in answer.json()["detail"]


def test_the_same_key_is_the_same_batch(uploads: Uploads) -> None:
    key = {"headers": {"Idempotency-Key": "k"}}
    first = uploads.post(prompts(2), **key)
    again = uploads.post(prompts(2), **key)
    other = uploads.post(prompts(3), **key)
    assert first.json()["id"] == again.json()["id"]
    assert (other.status_code, other.json()["type"]) == (
        422,
        "urn:sdserve:problem:idempotency_conflict",
    )


def test_batches_without_room_are_refused_with_a_time(redis: Redis, redis_url: str) -> None:
    RedisJobStore(redis).register_app(spec())
    settings = edge_settings(redis_url, limits=Limits(batches=BatchLimits(room=200)))
    with HttpApp(create_app(settings)) as app:
        uploads = Uploads(app, redis)
        uploads.make(prompts(1))
        refused = uploads.post(prompts(1))
    assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)


# --- feeding -------------------------------------------------------------------------------------


def test_a_batch_is_fed_to_its_end_and_leaves_half_the_queue_free(uploads: Uploads) -> None:
    batch_id = uploads.make(prompts(45))
    feeder, drawn = uploads.feeder(), []
    while feeder.round():
        assert uploads.store.app_status(APP).queued <= 10
        drawn.append(uploads.draw())
    assert sum(drawn) == 45
    batch = uploads.get(batch_id)
    assert (batch["status"], batch["counts"]["succeeded"]) == ("completed", 45)
    lines = uploads.results(batch_id)
    assert [line["custom_id"] for line in lines] == [f"id {n}" for n in range(1, 46)]
    assert len({line["job_id"] for line in lines}) == 45
    assert {line["status"] for line in lines} == {"succeeded"}
    assert lines[0]["compute_metrics"]["query_duration_seconds"] == 1.0
    picture = uploads.http.get(lines[44]["links"]["image"])
    assert picture.content == PNG


def test_lines_run_in_their_order_with_the_seeds_of_the_upload(uploads: Uploads) -> None:
    batch_id = uploads.make(prompts(3))
    seeds = [line["seed"] for line in uploads.results(batch_id)]
    uploads.feeder().round()
    claimed = uploads.store.run(Claim(app=APP, replica="r1", count=10, lease=LEASE))
    assert [job.params.prompt for job in claimed] == ["prompt 1", "prompt 2", "prompt 3"]
    assert [job.params.seed for job in claimed] == seeds


def test_two_batches_of_one_app_share_the_half_of_its_queue(uploads: Uploads) -> None:
    first, second = uploads.make(prompts(30)), uploads.make(prompts(30))
    uploads.feeder().round()
    assert [uploads.get(one)["counts"]["active"] for one in (first, second)] == [5, 5]


def test_a_full_queue_is_waited_for(uploads: Uploads) -> None:
    for _ in range(15):
        uploads.store.run(submit())
    batch_id = uploads.make(prompts(2))
    feeder = uploads.feeder()
    assert feeder.round()
    assert uploads.get(batch_id)["counts"]["waiting"] == 2
    uploads.draw()
    feeder.round()
    assert uploads.get(batch_id)["counts"]["active"] == 2


def test_a_spent_quota_is_waited_for(uploads: Uploads) -> None:
    batch_id = Batches(uploads.store).make(5, client="ann")
    limits = Limits(client=Quotas(jobs=2))
    feeder = Feeder(uploads.store, limits=limits, job_ttl=JOB_TTL, line_ttl=JOB_TTL)
    fed = list[int]()
    while feeder.round():
        fed.append(uploads.draw())
    assert max(fed) == 2
    assert uploads.store.run(ViewBatch(batch_id=batch_id)).succeeded == 5


def test_a_line_of_more_images_than_a_day_may_have_fails_at_once(uploads: Uploads) -> None:
    batches = Batches(uploads.store)
    first, second, third = lines(3)
    asked = [first, replace(second, params=replace(second.params, num_images=4)), third]
    batch_id = batches.upload(asked, client="ann").batch_id
    limits = Limits(client=Quotas(images_per_day=3))
    feeder = Feeder(uploads.store, limits=limits, job_ttl=JOB_TTL, line_ttl=JOB_TTL)
    while feeder.round():
        uploads.draw()
    assert batches.words(batch_id) == ["succeeded", "failed", "succeeded"]
    error = batches.states(batch_id)[1].error
    assert error is not None
    assert (error.code, "4 images" in error.message) == ("images_spent", True)


def test_lines_of_a_deleted_app_fail_and_others_go_on(uploads: Uploads) -> None:
    uploads.store.register_app(spec(name="sd-other"))
    batch_id = uploads.make([{"prompt": "a"}, {"prompt": "b", "app": "sd-other"}])
    uploads.store.unregister_app("sd-other")
    feeder = uploads.feeder()
    feeder.round()
    uploads.draw()
    done, failed = uploads.results(batch_id)
    assert (done["status"], failed["status"]) == ("succeeded", "failed")
    assert failed["error"]["code"] == "app_gone"
    assert failed["job_id"] is None
    assert uploads.get(batch_id)["status"] == "completed"
    feeder.round()  # packs
    assert not feeder.round()


def test_lines_of_a_broken_app_fail_with_its_reason(uploads: Uploads) -> None:
    batch_id = uploads.make(prompts(3))
    uploads.redis.hset(keys.APP + APP, mapping={"broken": "no such file", "broken_code": "gone"})
    uploads.feeder().round()
    errors = {
        (line["error"]["code"], line["error"]["message"]) for line in uploads.results(batch_id)
    }
    assert errors == {("app_broken", "no such file")}


def test_two_feeders_at_once_make_one_job_a_line(uploads: Uploads) -> None:
    batch_id = uploads.make(prompts(200))
    stop = threading.Event()

    def feed() -> None:
        feeder = uploads.feeder()
        while not stop.is_set():
            feeder.round()

    feeders = [threading.Thread(target=feed) for _ in range(3)]
    for thread in feeders:
        thread.start()
    drawn = 0
    try:
        while drawn < 200:
            drawn += uploads.draw()
    finally:
        stop.set()
        for thread in feeders:
            thread.join(LIMIT)
    assert drawn == 200
    assert uploads.get(batch_id)["counts"]["succeeded"] == 200
    assert uploads.store.run(Claim(app=APP, replica="r1", count=10, lease=LEASE)) == []


def test_a_worker_that_is_killed_while_it_feeds_loses_and_repeats_nothing(
    uploads: Uploads, redis_url: str
) -> None:
    batch_id = uploads.make(prompts(120))
    drawn = 0
    for _ in range(3):
        command = [sys.executable, "-m", "workers.main", "batches"]
        environment = {**os.environ, "REDIS_URL": redis_url}
        worker = subprocess.Popen(
            command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            before = drawn

            def has_progress(before: int = before) -> bool:
                nonlocal drawn
                drawn += uploads.draw()
                return drawn >= min(120, before + 30)

            until(has_progress)
        finally:
            os.killpg(worker.pid, signal.SIGKILL)  # and the child that does the task
            worker.wait(LIMIT)
    feeder = uploads.feeder()
    while drawn < 120:
        feeder.round()
        drawn += uploads.draw()
    assert drawn == 120
    counts = uploads.get(batch_id)["counts"]
    assert (counts["succeeded"], counts["waiting"], counts["active"]) == (120, 0, 0)
    prompts_seen = {line["custom_id"] for line in uploads.results(batch_id)}
    assert len(prompts_seen) == 120


def test_a_lost_task_is_asked_for_again_and_a_live_one_is_not(uploads: Uploads) -> None:
    enqueue_feed(uploads.redis)
    assert uploads.redis.exists(keys.FEEDING) == 0  # nothing to feed
    uploads.make(prompts(1))
    enqueue_feed(uploads.redis)
    enqueue_feed(uploads.redis)
    assert len(_tasks(uploads.redis)) == 1
    uploads.redis.delete(keys.FEEDING)  # as when its time has run out
    enqueue_feed(uploads.redis)
    assert len(_tasks(uploads.redis)) == 1  # it waits yet: a second would have a successor too
    task_queue(uploads.redis, QueueName.BATCHES).empty()  # as by a worker that took it and died
    uploads.redis.delete(keys.FEEDING)
    enqueue_feed(uploads.redis)
    assert len(_tasks(uploads.redis)) == 1


def _tasks(redis: Redis) -> list[str]:
    return task_queue(redis, QueueName.BATCHES).job_ids


# --- collecting and cancelling -------------------------------------------------------------------


def test_results_can_be_followed_by_a_cursor(uploads: Uploads) -> None:
    batch_id = uploads.make(prompts(450))
    seen, cursor = list[int](), 0
    while page := uploads.results(batch_id, cursor=cursor, limit=130):
        seen += [line["line"] for line in page]
        cursor = page[-1]["line"]
    assert seen == list(range(1, 451))


def test_the_zip_holds_the_pictures_that_are_kept_and_names_the_others(uploads: Uploads) -> None:
    lines = [
        {"prompt": "a", "custom_id": "../../etc/passwd"},
        {"prompt": "b", "num_images": 2},
        {"prompt": "c", "format": "jpeg"},
        {"prompt": "d", "custom_id": "gone"},
    ]
    batch_id = uploads.make(lines)
    feeder = uploads.feeder()
    feeder.round()
    uploads.draw()
    job_id = uploads.results(batch_id)[3]["job_id"]
    uploads.redis.delete(keys.result(job_id, 1, 0))
    answer = uploads.http.get(f"/v1/batches/{batch_id}/images.zip")
    assert answer.headers["content-type"] == "application/zip"
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.testzip() is None
    names = ["000001-_etc_passwd.png", "000002-1.png", "000002-2.png", "000003.jpg"]
    assert archive.namelist() == [*names, "results.jsonl"]
    assert archive.read(names[0]) == PNG
    assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
    told = [json.loads(line) for line in archive.read("results.jsonl").splitlines()]
    assert [line["files"] for line in told] == [names[:1], names[1:3], names[3:], []]
    assert [line["expired"] for line in told] == [0, 0, 0, 1]


def test_a_cancel_ends_waiting_and_queued_lines_at_once_and_running_ones_soon(
    uploads: Uploads,
) -> None:
    batch_id = uploads.make(prompts(30))
    uploads.feeder().round()
    running = uploads.world.claim()
    answer = uploads.http.delete(f"/v1/batches/{batch_id}")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelling")
    assert answer.json()["counts"] == {
        "waiting": 0, "active": 1, "succeeded": 0, "failed": 0, "cancelled": 29,
    }  # fmt: skip
    uploads.world.succeed(running)
    batch = uploads.get(batch_id)
    assert (batch["status"], batch["counts"]["cancelled"]) == ("cancelled", 30)
    assert uploads.http.delete(f"/v1/batches/{batch_id}").status_code == 409
    uploads.feeder().round()  # packs
    assert not uploads.feeder().round()


def test_a_feeder_finishes_the_cancel_of_a_gateway_that_died(uploads: Uploads) -> None:
    batch_id = uploads.make(prompts(30))
    uploads.feeder().round()
    uploads.store.run(CloseLines(batch_id=batch_id, job_ttl=JOB_TTL))
    uploads.feeder().round()
    assert uploads.get(batch_id)["status"] == "cancelled"
    assert uploads.store.app_status(APP).queued == 0


def test_batches_are_listed_in_pages(uploads: Uploads) -> None:
    made = [uploads.make(prompts(1)) for _ in range(3)]
    first = uploads.http.get("/v1/batches", params={"limit": 2}).json()
    assert [batch["id"] for batch in first["data"]] == [made[2], made[1]]
    cursor = {"limit": 2, "cursor": first["next_cursor"]}
    rest = uploads.http.get("/v1/batches", params=cursor).json()
    assert [batch["id"] for batch in rest["data"]] == [made[0]]
    assert rest["next_cursor"] is None


@pytest.mark.parametrize("path", ["", "/results", "/images.zip"])
@pytest.mark.parametrize("batch_id", ["nonsense", "019ab000-0000-7000-8000-000000000000"])
def test_an_unknown_batch_is_a_404(uploads: Uploads, path: str, batch_id: str) -> None:
    answer = uploads.http.get(f"/v1/batches/{batch_id}{path}")
    assert (answer.status_code, answer.json()["type"]) == (
        404,
        "urn:sdserve:problem:batch_not_found",
    )


def test_anothers_batch_does_not_exist(uploads: Uploads) -> None:
    theirs = Batches(uploads.store).make(2, client="ann")
    for path in ("", "/results", "/images.zip"):
        assert uploads.http.get(f"/v1/batches/{theirs}{path}").status_code == 404
    assert uploads.http.delete(f"/v1/batches/{theirs}").status_code == 404
    assert uploads.http.get("/v1/batches").json()["data"] == []
