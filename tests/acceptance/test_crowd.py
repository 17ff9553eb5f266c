"""Many at once: two keys, three apps, 200 mixed jobs, cancels, a flaky webhook receiver, streams
that break. Every invariant holds for each of them.
"""

import asyncio
import hashlib
import json
import re
import threading
import time
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from httpx_sse import aconnect_sse

from sdserve.client import ApiError, AsyncSdClient, JobView
from sdserve.jobs import JobStatus
from sdserve.store import connect
from sdserve.webhook_signature import parse_secrets, secrets_of, told
from tests.acceptance.conftest import Stack
from tests.acceptance.server import LIMIT, decode
from tests.faults.checker import Facts, check
from tests.faults.history import Asked, CancelAsked, Seen, digests
from tests.faults.snapshot import take_snapshot
from tests.judge import COLOURS, obeys
from tests.receiver import Exchange, Received, Receiver, is_signed

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1200)]

SEED = 5
JOBS = 200
USERS = 8  # tasks of one key; each has one job at a time
APPS = {
    "sd-first": "tiny-shapes-sd15",
    "sd-second": "tiny-shapes-sdxl",
    "sd-third": "tiny-shapes-sd15",
}
SECRET = "whsec_" + b64encode(b"a secret of 24 bytes....").decode()
LATEST = 240.0  # seconds until the last webhook is taken; two failures take some 40


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What one job is to go through."""

    app: str
    body: dict[str, Any]
    prefers: str | None
    is_followed: bool  # over a stream that breaks
    cancel_at: int | None  # looks before the cancel


@dataclass(kw_only=True)
class User:
    """One API key, and what was seen with it."""

    key: str
    jobs: dict[str, JobView] = field(default_factory=dict[str, JobView])
    wishes: dict[str, Wish] = field(default_factory=dict[str, Wish])
    events: list[Asked | CancelAsked | Seen] = field(
        default_factory=list[Asked | CancelAsked | Seen]
    )
    # job -> (event id, status) in the order they came, over all its connections
    streamed: defaultdict[str, list[tuple[int, str]]] = field(
        default_factory=lambda: defaultdict[str, list[tuple[int, str]]](list)
    )

    @property
    def id(self) -> str:
        return self.key.split("_")[1]


class Flaky:
    """The mind of a receiver that takes each event in the end, after up to two other answers."""

    def __init__(self) -> None:
        self._random = Random(SEED)
        self._left = defaultdict[str, int](lambda: self._random.randint(0, 2))
        self._lock = threading.Lock()
        self.taken = list[Received]()
        self.failures = 0

    def __call__(self, request: Received, exchange: Exchange) -> None:
        with self._lock:
            is_taken = not self._left[request.event]
            if is_taken:
                self.taken.append(request)
            else:
                self._left[request.event] -= 1
                self.failures += 1
            status = self._random.choice([200, 204] if is_taken else [500, 429, None])
        if status is None:
            exchange.reset()
        else:
            exchange.answer(status)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver(Flaky()) as one:
        yield one


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with three apps that asks for keys and sends webhooks."""
    stack = Stack(tmp_path_factory.mktemp("crowd"))
    stack.environment |= {
        "SD_AUTH": "on",
        "SD_WEBHOOK_SECRETS": SECRET,
        "SD_WEBHOOK_ALLOW": "127.0.0.1",
    }
    try:
        started = stack.stack("up")
        assert started.returncode == 0, started.stderr
        for app, model in APPS.items():
            file = stack.add_model(model)
            named = file.rename(file.with_name(f"{app.removeprefix('sd-')}.safetensors"))
            done = stack.deploy_sd(str(named), "--cpus", "0.5")
            assert done.returncode == 0, done.stderr
        yield stack
    finally:
        stopped = stack.stack("down")
    assert stopped.returncode == 0, stopped.stderr


def new_user(stack: Stack, name: str) -> User:
    done = stack.run("bash", "deploy_scripts/api_keys.sh", "create", name)
    assert done.returncode == 0, done.stderr
    (token,) = re.findall(r"sd_[a-z0-9]+_[\w-]{43}", done.stdout)
    return User(key=token)


def wishes(webhook: str) -> list[Wish]:
    """The jobs of one key; the same for each key, so that equal requests meet."""
    random = Random(SEED)
    shapes = ("circle", "square", "triangle")
    made = list[Wish]()
    for number in range(JOBS // 2):
        colour, background = random.sample(sorted(COLOURS), 2)
        is_cancelled = random.random() < 0.15
        body: dict[str, Any] = {
            "prompt": f"a {colour} {random.choice(shapes)} on a {background} background",
            "seed": number,
            "num_images": random.choice([1, 1, 1, 2]),
            "num_inference_steps": 150 if is_cancelled else random.choice([10, 12, 15]),
            "priority": random.choice([0, 0, 0, 1]),
            "format": random.choice(["base64", "png", "webp"]),
        }
        if random.random() < 0.5:
            body["webhook"] = webhook
        made.append(
            Wish(
                app=random.choice(list(APPS)),
                body=body,
                prefers=random.choice(["respond-async", "wait=20", None]),
                is_followed=random.random() < 0.3,
                cancel_at=random.randrange(3) if is_cancelled else None,
            )
        )
    return made


async def visit(user: User, url: str, todo: list[Wish]) -> None:
    """All of one key's jobs, USERS at a time."""
    left = iter(enumerate(todo))
    async with (
        AsyncSdClient(url, api_key=user.key) as client,
        httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {user.key}"},
            timeout=LIMIT,
            trust_env=False,
        ) as http,
    ):

        async def work() -> None:
            for number, wish in left:  # one iterator, shared
                await perform(user, client, http, wish, f"crowd {number}")

        await asyncio.gather(*[work() for _ in range(USERS)])


async def perform(
    user: User, client: AsyncSdClient, http: httpx.AsyncClient, wish: Wish, key: str
) -> None:
    began = time.time()
    prefers = "respond-async" if wish.cancel_at is not None else wish.prefers
    view = await client.submit(wish.app, wish.body, idempotency_key=key, prefer=prefers)
    body = hashlib.sha256(json.dumps(wish.body, sort_keys=True).encode()).hexdigest()
    user.events.append(
        Asked(
            began=began, at=time.time(), app=wish.app, body=body, key=f"{user.id} {key}",
            status=202, job_id=view.id, client=user.id,
        )
    )  # fmt: skip
    user.wishes[view.id] = wish
    if wish.is_followed:
        await follow(user, http, view.id, wish.cancel_at)
    elif wish.cancel_at is not None:
        for _ in range(wish.cancel_at):
            await client.job(view.id, wait=0.3)
        await cancel(user, client, view.id)
    began = time.time()
    final = await client.wait(view.id)
    user.jobs[view.id] = final
    images = None
    if final.status is JobStatus.SUCCEEDED:
        pictures = await client.pictures(final)
        images = digests(picture.data for picture in pictures)
        if wish.body["num_inference_steps"] >= 12:  # with fewer a colour may be off
            assert obeys(decode(pictures[0].data), wish.body["prompt"]), wish
    user.events.append(
        Seen(
            began=began, at=time.time(), job_id=view.id, status=final.status,
            attempt=final.attempt, error=final.error.code if final.error else None,
            images=images, client=user.id,
        )
    )  # fmt: skip


async def cancel(user: User, client: AsyncSdClient, job_id: str) -> None:
    began, status = time.time(), 200
    try:
        view = await client.cancel(job_id)
        status = 200 if view.status is JobStatus.CANCELLED else 202
    except ApiError as error:  # it has ended: no harm
        status = error.status
    user.events.append(CancelAsked(began=began, at=time.time(), job_id=job_id, status=status))


async def follow(user: User, http: httpx.AsyncClient, job_id: str, cancel_at: int | None) -> None:
    """Read the job's stream to its end, on connections that break after a few events."""
    seen = user.streamed[job_id]
    patience = Random(job_id)
    is_over = False
    while not is_over:
        headers = {"Last-Event-ID": str(seen[-1][0])} if seen else {}
        left = patience.randint(1, 4)
        path = f"/v1/jobs/{job_id}/events"
        async with aconnect_sse(http, "GET", path, headers=headers) as source:
            async for event in source.aiter_sse():
                if event.event != "job":
                    continue
                seen.append((int(event.id), event.json()["status"]))
                if cancel_at is not None and len(seen) > cancel_at:
                    cancel_at, began = None, time.time()
                    status = (await http.delete(f"/v1/jobs/{job_id}")).status_code
                    user.events.append(
                        CancelAsked(began=began, at=time.time(), job_id=job_id, status=status)
                    )
                is_over = JobStatus(seen[-1][1]).is_final
                left -= 1
                if not left and not is_over:
                    break  # hang up


def test_a_crowd_of_two_keys_keeps_every_promise(busy: Stack, receiver: Receiver) -> None:
    users = [new_user(busy, "anna"), new_user(busy, "bert")]
    todo = wishes(receiver.url)

    async def all_of_them() -> None:
        await asyncio.gather(*[visit(user, busy.url, todo) for user in users])

    asyncio.run(all_of_them())
    everything = {job_id: view for user in users for job_id, view in user.jobs.items()}
    assert len(everything) == JOBS
    ends = Counter(view.status for view in everything.values())
    assert ends[JobStatus.FAILED] == 0, [v for v in everything.values() if v.error]
    assert ends[JobStatus.CANCELLED] >= JOBS // 20, ends

    # What clients saw and what Redis holds agree: the guarantees, usage included.
    redis_url = (Path(busy.environment["SD_STATE_DIR"]) / "redis" / "url").read_text()
    with connect(redis_url, reply_timeout=LIMIT) as redis:
        snapshot = take_snapshot(redis)
    assert set(snapshot.jobs) == set(everything)
    events = [event for user in users for event in user.events]
    assert check(Facts(events, snapshot)) == []

    for user, other in (users, users[::-1]):
        streams_are_whole(user)
        jobs_are_private(busy.url, user, other)
        usage_is_the_sum(busy.url, user)
    webhooks_are_delivered(users, receiver)


def streams_are_whole(user: User) -> None:
    """Event ids never go back, over reconnects too; the last event is the end."""
    assert user.streamed
    for job_id, seen in user.streamed.items():
        numbers = [number for number, _ in seen]
        assert numbers == sorted(numbers), seen  # equal: while queued only its place has changed
        *before, last = [JobStatus(status) for _, status in seen]
        assert last is user.jobs[job_id].status
        assert not any(status.is_final for status in before), seen


def jobs_are_private(url: str, user: User, other: User) -> None:
    headers = {"Authorization": f"Bearer {user.key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=LIMIT, trust_env=False) as http:
        listed, cursor = set[str](), None
        while True:
            params = {"limit": 70, **({"cursor": cursor} if cursor else {})}
            page = http.get("/v1/jobs", params=params).json()
            listed |= {job["id"] for job in page["data"]}
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert listed == set(user.jobs)
        for job_id in list(other.jobs)[:5]:
            for path in ("", "/image", "/events"):
                assert http.get(f"/v1/jobs/{job_id}{path}").status_code == 404
            assert http.delete(f"/v1/jobs/{job_id}").status_code == 404


def usage_is_the_sum(url: str, user: User) -> None:
    headers = {"Authorization": f"Bearer {user.key}"}
    answer = httpx.get(f"{url}/v1/usage?by=app", headers=headers, timeout=LIMIT, trust_env=False)
    told = {row["app"]: row for row in answer.json()["data"]}
    for app in APPS:
        mine = [view for view in user.jobs.values() if view.app == app]
        good = [view for view in mine if view.status is JobStatus.SUCCEEDED]
        assert told[app]["jobs_succeeded"] == len(good)
        assert told[app]["jobs_cancelled"] == len(mine) - len(good)
        assert told[app]["images"] == sum(view.parameters["num_images"] for view in good)


def webhooks_are_delivered(users: list[User], receiver: Receiver) -> None:
    """Each end that was to be told is told at least once, and once to whoever looks at the id."""
    wanted = {
        job_id: view.status
        for user in users
        for job_id, view in user.jobs.items()
        if "webhook" in user.wishes[job_id].body
    }
    flaky = receiver.mind
    assert isinstance(flaky, Flaky)
    deadline = time.monotonic() + LATEST
    while {job_of(request)["id"] for request in list(flaky.taken)} != set(wanted):
        assert time.monotonic() < deadline, f"{len(flaky.taken)} of {len(wanted)}"
        time.sleep(0.5)
    for request in receiver.received:  # with the secret of the job's own key
        (owner,) = [user for user in users if job_of(request)["id"] in user.jobs]
        (secret,) = secrets_of(owner.id, parse_secrets(SECRET))
        assert is_signed(request, told(secret))
    assert flaky.failures > len(wanted) / 2
    once = {request.event: job_of(request) for request in flaky.taken}
    assert {job["id"]: job["status"] for job in once.values()} == wanted
    assert len(once) == len(wanted)


def job_of(request: Received) -> dict[str, Any]:
    return json.loads(request.body)["data"]
