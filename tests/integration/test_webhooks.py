"""Webhooks from the end of a job to the receiver: a real worker, real HTTP, receivers that fail."""

import json
import os
import signal
import subprocess
import threading
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis

from api.gateway import create_app as create_gateway
from api.schemas import JobResponse
from sdserve.daemon import Daemon
from sdserve.jobs import JobFailure, JobStatus
from sdserve.outbox import BeginHook, HookOutcome, SettleHook
from sdserve.redis_server import ensure_redis, stop_redis
from sdserve.settings import Settings
from sdserve.store import RedisJobStore, connect
from sdserve.webhook_signature import parse_secrets, secrets_of, told
from sdserve.webhook_targets import WebhookTargets
from tests.batch_world import Batches
from tests.http_app import GENERATE, PROMPT, HttpApp, edge_settings, one_app
from tests.receiver import Exchange, Received, Receiver, friendly, is_signed
from tests.rq_worker import working
from tests.store_world import World
from tests.values import APP, finish, spec
from tests.waiting import until
from workers import RQ_PREFIX
from workers.task_queue import QueueName, task_queue
from workers.webhook_event import WebhookEvent
from workers.webhooks import MAX_QUEUED, sweep

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent.parent
BATCHES = "/v1/batches"
OLD, NEW = (f"whsec_{b64encode(byte * 32).decode()}" for byte in (b"o", b"n"))
# What a receiver does with the first try of an event.
FLAWS = ("none", "500", "503", "reset", "reset after it was noted", "slow", "hangs")


def world_of(redis: Redis) -> World:
    return World(RedisJobStore(redis), redis)


@contextmanager
def delivering(redis_url: str, log: Path = Path(os.devnull)) -> Generator[subprocess.Popen[bytes]]:
    with working(
        redis_url, log, QueueName.WEBHOOKS, SD_WEBHOOK_SECRETS=OLD, SD_WEBHOOK_ALLOW="127.0.0.1"
    ) as process:
        yield process


def events(receiver: Receiver) -> set[str]:
    return {request.event for request in receiver.received}


def cancelled(world: World, url: str) -> str:
    """The event of a job that was just cancelled."""
    job_id = world.submit(webhook=url).job_id
    world.cancel(job_id)
    return f"job_{job_id}_cancelled"


def ended(world: World, url: str, way: int) -> str:
    """The event of a job that has just ended, in one of three ways."""
    job_id = world.submit(webhook=url).job_id
    job = world.claim()
    if way == 0:
        world.succeed(job)
        return f"job_{job_id}_succeeded"
    if way == 1:
        failure = JobFailure(code="out_of_memory", message="too big")
        world.run(finish(job.id, job.fence, JobStatus.FAILED, error=failure))
        return f"job_{job_id}_failed"
    world.cancel(job_id)
    world.succeed(job)
    return f"job_{job_id}_cancelled"


def test_every_ended_job_reaches_a_flaky_receiver(redis: Redis, redis_url: str) -> None:
    tries, noted, lock = Counter[str](), Counter[str](), threading.Lock()

    def mind(request: Received, exchange: Exchange) -> None:
        with lock:
            tries[request.event] += 1
            flaw = flaws[request.event] if tries[request.event] == 1 else "none"
            if flaw in ("none", "reset after it was noted", "slow"):
                noted[request.event] += 1
        match flaw:
            case "500":
                exchange.answer(500)
            case "503":
                exchange.answer(503, Retry_After="1")
            case "hangs":
                gone.wait(60)
            case "slow":
                gone.wait(1)
                exchange.answer(200, b"thanks")
            case "none":
                exchange.answer(204)
            case _:
                exchange.reset()

    gone, flaws = threading.Event(), dict[str, str]()
    world = world_of(redis)
    with Receiver(mind) as receiver:
        for number in range(21):
            # One hangs: it costs ten seconds.
            flaw = FLAWS[number % 7] if number < 7 else FLAWS[number % 6]
            flaws[ended(world, receiver.url, number % 3)] = flaw
        with delivering(redis_url):
            until(lambda: not world.hooks())
        gone.set()
    assert events(receiver) == set(flaws)
    assert all(is_signed(request, OLD) for request in receiver.received)
    # By its id a receiver knows what it had before; then each is there exactly once.
    assert set(noted) == set(flaws)
    repeated = {event for event, count in noted.items() if count > 1}
    assert repeated == {event for event, flaw in flaws.items() if "noted" in flaw}
    bodies = {(request.event, request.body) for request in receiver.received}
    assert len(bodies) == len(flaws)


def test_a_keys_webhooks_are_signed_with_its_own_secret(redis: Redis, redis_url: str) -> None:
    world = world_of(redis)
    batches = Batches(world.store)
    with Receiver() as receiver, delivering(redis_url):
        for client in ("", "ann", "bob"):
            world.cancel(world.submit(webhook=receiver.url, client=client).job_id)
            batches.close(batches.make(1, webhook=receiver.url, client=client))
        until(lambda: len(receiver.received) == 6)
    own = {client: told(secrets_of(client, parse_secrets(OLD))[0]) for client in ("", "ann", "bob")}
    assert own[""] == OLD
    for kind in ("job", "batch"):
        signed = [
            [client for client, secret in own.items() if is_signed(request, secret)]
            for request in receiver.received
            if request.event.startswith(kind)
        ]
        assert sorted(signed) == [[""], ["ann"], ["bob"]]


def test_a_key_whose_receivers_hang_holds_up_no_other(redis: Redis, redis_url: str) -> None:
    gone = threading.Event()

    def hang(_request: Received, _exchange: Exchange) -> None:
        gone.wait(60)

    world = world_of(redis)
    with ExitStack() as stack:
        friends = stack.enter_context(Receiver())
        hanging = [stack.enter_context(Receiver(hang)) for _ in range(6)]
        stack.callback(gone.set)
        for receiver in hanging:
            world.cancel(world.submit(webhook=receiver.url, client="ann").job_id)
        for _ in range(6):
            world.cancel(world.submit(webhook=friends.url, client="bob").job_id)
        with delivering(redis_url):
            until(lambda: len(events(friends)) == 6)
            tried = sum(len(receiver.received) for receiver in hanging)
    assert tried <= 2  # ten seconds each; all of ann's would have been a minute


def test_the_body_is_the_job_without_its_pictures(redis: Redis) -> None:
    world = world_of(redis)
    for way in range(3):
        event = ended(world, "https://receiver.example/", way)
        attempt = world.begin(event)
        assert attempt is not None
        body = json.loads(WebhookEvent.of(attempt).body)
        _, job_id, status = event.split("_")
        seen = JobResponse.of(world.view(job_id), None, []).model_dump(mode="json")
        assert body["type"] == f"job.{status}"
        assert body["data"] == seen
        assert body["timestamp"] == seen["finished_at"]


def test_a_worker_that_is_killed_in_a_delivery_loses_nothing(redis: Redis, redis_url: str) -> None:
    entered, gone = threading.Event(), threading.Event()

    def mind(_request: Received, _exchange: Exchange) -> None:
        entered.set()
        gone.wait(60)

    world = world_of(redis)
    with Receiver(mind) as receiver:
        event = cancelled(world, receiver.url)
        with delivering(redis_url) as process:
            until(entered.is_set)
            worker = psutil.Process(process.pid)
            for one in (worker, *worker.children(recursive=True)):
                one.send_signal(signal.SIGKILL)
        receiver.mind = friendly
        with delivering(redis_url):
            until(lambda: not world.hooks())
        gone.set()
    assert [request.event for request in receiver.received] == [event, event]


def test_a_lost_task_is_asked_for_again(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.webhooks.PATIENCE", timedelta(seconds=1))
    world, queue = world_of(redis), task_queue(redis, QueueName.WEBHOOKS)
    with Receiver() as receiver:
        event = cancelled(world, receiver.url)
        sweep(redis)
        assert queue.count == 1
        redis.delete(*redis.scan_iter(RQ_PREFIX + "*"))
        assert queue.count == 0
        with delivering(redis_url):
            until(lambda: not world.hooks())
    assert events(receiver) == {event}


def test_a_task_that_comes_twice_delivers_once(redis: Redis, redis_url: str) -> None:
    world, queue = world_of(redis), task_queue(redis, QueueName.WEBHOOKS)
    with Receiver() as receiver:
        event = cancelled(world, receiver.url)
        for _ in range(3):
            queue.enqueue("workers.webhooks.deliver", event)
        with delivering(redis_url):
            until(lambda: len(queue.finished_job_registry.get_job_ids()) == 3)
    assert [request.event for request in receiver.received] == [event]


def test_events_outlive_a_crash_of_redis(tmp_path: Path) -> None:
    settings = Settings(redis_url=None, state_dir=tmp_path)
    url = ensure_redis(settings)
    log = tmp_path / "worker.log"
    refusing = threading.Event()
    refusing.set()

    def mind(_request: Received, exchange: Exchange) -> None:
        exchange.answer(500 if refusing.is_set() else 204)

    try:
        with Receiver(mind) as receiver, delivering(url, log):
            event = cancelled(world_of(connect(url)), receiver.url)
            until(lambda: receiver.received)
            daemon = Daemon.find(tmp_path / "redis" / "server.json")
            assert daemon is not None
            os.kill(daemon.pid, signal.SIGKILL)
            until(lambda: not daemon.is_running)
            refusing.clear()
            ensure_redis(settings)
            until(lambda: not world_of(connect(url)).hooks())
        assert events(receiver) == {event}
    finally:
        stop_redis(settings)


def test_a_receiver_that_is_gone_is_asked_no_more_until_a_replay(
    redis: Redis, redis_url: str
) -> None:
    def mind(_request: Received, exchange: Exchange) -> None:
        exchange.answer(410)

    world = world_of(redis)
    with Receiver(mind) as receiver:
        first, second = (cancelled(world, receiver.url) for _ in range(2))
        with delivering(redis_url):
            until(lambda: len(world.hooks(dead=True)) == 2)
            assert world.hooks() == []
            receiver.mind = friendly
            listed = webhooks("dead", redis_url=redis_url).stdout
            assert first in listed
            assert "the receiver answered 410" in listed
            assert webhooks("replay", first, redis_url=redis_url).returncode == 0
            until(lambda: [view.event for view in world.hooks(dead=True)] == [second])
            assert "1 are tried now" in webhooks("replay", "--all", redis_url=redis_url).stdout
            until(lambda: not world.hooks() and not world.hooks(dead=True))
        assert webhooks("list", redis_url=redis_url).stdout == "none\n"
        unknown = webhooks("replay", first, redis_url=redis_url)
        assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)
        assert "No undelivered webhook" in unknown.stderr


def test_after_a_day_an_event_is_given_up(redis: Redis) -> None:
    world = world_of(redis)
    event = cancelled(world, "https://receiver.example/")
    redis.hincrby(f"sd:hook:{event}", "since", -24 * 3600 * 1000 + 60_000)  # a minute is left
    attempt = world.run(BeginHook(event=event, busy=timedelta(0)))
    retry = SettleHook(
        event=event, number=1, outcome=HookOutcome.RETRY, delay=timedelta(hours=6), reason="500"
    )
    assert world.run(retry) == "waiting"
    (waiting,) = world.hooks()
    assert waiting.at - attempt.created_at < timedelta(minutes=2)  # the last try comes in time
    redis.hincrby(f"sd:hook:{event}", "since", -60_000)
    redis.hset(f"sd:hook:{event}", "due", 0)
    attempt = world.run(BeginHook(event=event, busy=timedelta(0)))
    assert world.settle(attempt, HookOutcome.RETRY, delay=timedelta(hours=6)) == "dead"
    assert [view.event for view in world.hooks(dead=True)] == [event]


def test_a_long_outbox_stays_out_of_rq(redis: Redis) -> None:
    world = world_of(redis)
    for _ in range(MAX_QUEUED + 5):
        cancelled(world, "https://receiver.example/")
    for _ in range(3):
        sweep(redis)
    assert task_queue(redis, QueueName.WEBHOOKS).count == MAX_QUEUED


@pytest.mark.parametrize(
    ("targets", "url", "reason"),
    [
        (None, "https://receiver.example/", "webhooks are off"),
        (WebhookTargets(), "http://receiver.example/", "use https"),
        (WebhookTargets(), "https://10.0.0.1/", "nowhere on the internet"),
    ],
)
def test_a_webhook_that_cannot_be_is_refused(
    redis: Redis, redis_url: str, targets: WebhookTargets | None, url: str, reason: str
) -> None:
    with HttpApp(one_app(spec(), edge_settings(redis_url, webhooks=targets))) as app:
        answer = app.http.post(GENERATE, json={**PROMPT, "webhook": url})
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["type"] == "urn:sdserve:problem:invalid_parameter"
    assert [error["field"] for error in problem["errors"]] == ["webhook"]
    assert reason in problem["detail"]
    assert redis.keys("sd:job:*") == []


def test_a_request_with_a_webhook_is_told_of_its_end(redis: Redis, redis_url: str) -> None:
    targets = WebhookTargets.parse("127.0.0.1")
    with (
        Receiver() as receiver,
        HttpApp(one_app(spec(), edge_settings(redis_url, webhooks=targets))) as app,
    ):
        answer = app.http.post(GENERATE, json={**PROMPT, "webhook": receiver.url})
        job_id = answer.json()["id"]
        app.http.delete(f"/v1/jobs/{job_id}")
        with delivering(redis_url):
            until(lambda: receiver.received)
    assert events(receiver) == {f"job_{job_id}_cancelled"}


def test_the_end_of_a_batch_is_told_as_the_gateway_tells_it(redis: Redis, redis_url: str) -> None:
    targets = WebhookTargets.parse("127.0.0.1")
    RedisJobStore(redis).register_app(spec())
    line, query = {"prompt": "a"}, {"app": APP}
    with (
        Receiver() as receiver,
        HttpApp(create_gateway(edge_settings(redis_url, webhooks=targets))) as app,
    ):
        whole = {**query, "lines": [line], "webhook": receiver.url}
        hooked = {**query, "webhook": receiver.url}
        headers = {"Content-Type": "application/jsonl"}
        for answer in (
            app.http.post(BATCHES, json=whole),
            app.http.post(BATCHES, content=json.dumps(line), params=hooked, headers=headers),
        ):
            assert answer.status_code == 202, answer.text
            app.http.delete(answer.headers["Location"])
        seen = [app.http.get(f"{BATCHES}/{one['id']}").json() for one in
                app.http.get(BATCHES).json()["data"]]  # fmt: skip
        with delivering(redis_url):
            until(lambda: len(receiver.received) == 2)
    assert events(receiver) == {f"batch_{batch['id']}_cancelled" for batch in seen}
    bodies = {body["data"]["id"]: body for body in map(_body, receiver.received)}
    for batch in seen:
        body = bodies[batch["id"]]
        assert (body["type"], body["data"]) == ("batch.cancelled", batch)
        assert body["timestamp"] == batch["ended_at"]


def test_a_batch_whose_webhook_cannot_be_is_refused(redis: Redis, redis_url: str) -> None:
    RedisJobStore(redis).register_app(spec())
    with HttpApp(create_gateway(edge_settings(redis_url))) as app:
        whole = {"app": APP, "lines": [{"prompt": "a"}], "webhook": "https://receiver.example/"}
        answer = app.http.post(BATCHES, json=whole)
        assert app.http.get(BATCHES).json()["data"] == []
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == ["webhook"]


def _body(request: Received) -> dict[str, Any]:
    return json.loads(request.body)


def test_the_check_in_the_documentation_takes_ours_and_refuses_others(
    redis: Redis, redis_url: str
) -> None:
    page = (ROOT / "docs" / "http-api.md").read_text()
    example = page.split("## Webhooks")[1].split("```python\n")[1].split("```")[0]
    names: dict[str, Callable[..., bool]] = {}
    exec(compile(example, "http-api.md", "exec"), names)  # noqa: S102 (our own page)
    is_ours = names["is_ours"]
    with Receiver() as receiver:
        cancelled(world_of(redis), receiver.url)
        with delivering(redis_url):
            until(lambda: receiver.received)
    (request,) = receiver.received
    headers = dict(request.headers.items())
    assert is_ours(OLD, headers, request.body)
    assert not is_ours(NEW, headers, request.body)
    assert not is_ours(OLD, headers, request.body + b" ")
    old = {**headers, "webhook-timestamp": str(int(headers["webhook-timestamp"]) - 301)}
    assert not is_ours(OLD, old, request.body)


def webhooks(*arguments: str, redis_url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "deploy_scripts" / "webhooks.sh"), *arguments],
        env={**os.environ, "REDIS_URL": redis_url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
