"""How far `eta_seconds` is from the truth: in a mixed queue, and for a job that starts its replica.

    python -m bench.eta [--jobs 80] [--starts 8] [--model FILE.safetensors]

An app of its own under uvicorn, its replica in another process, and a Redis. The jobs differ in
steps, size, guidance, pictures, and come from several keys at several priorities, faster than they
are done; then the rest of the queue drains. Every job is polled. The truth is `finished_at`.
A start is played as Serve does it: the replica is forked from a process that has the libraries
imported, PLACEMENT_SECONDS after the job came to an app that has none. Prints Markdown.
"""

import argparse
import asyncio
import multiprocessing
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import httpx

from api.forecast import PLACEMENT_SECONDS
from bench.own_app import MODEL, new_client, replica_settings, serve, serving
from sdserve.apps import AppSpec, AppState
from sdserve.checkpoints import inspect_checkpoint
from sdserve.redis_server import ensure_redis, stop_redis
from sdserve.settings import Settings
from sdserve.store import RedisJobStore, connect
from workers.puller import Puller

APP = "sd-eta"
PATIENCE = 300.0  # seconds for anything that must happen
WARM_UP = 15  # jobs
CLIENTS = 4
LOAD = 1.6  # times what the replica can do: how fast the jobs come
LOOK = 3.0  # seconds between two polls of a job in the queue
START_LOOK = 0.1  # the same of a job that starts its replica
NEAR = 5  # jobs ahead: fewer are near
SHORTEST = 1.0  # seconds; what is left less than that before the end is not judged by its share

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["workers.assembly"])  # as the standby process of a node


@dataclass(frozen=True, kw_only=True)
class Told:
    """One answer about a job."""

    at: float  # when it came, seconds since the epoch
    eta: float | None
    position: int | None  # jobs ahead; None: it runs
    is_first: bool  # the answer that accepted it


@dataclass(frozen=True, kw_only=True)
class Followed:
    """A job with all that was said of it until it ended."""

    told: Sequence[Told]
    ended: float  # seconds since the epoch
    ran: float  # seconds on the replica
    cpu: float  # of these, on a core: less where others have it


class Client:
    """One who sends jobs and polls them."""

    def __init__(self, http: httpx.AsyncClient, token: str) -> None:
        self._http = http
        self._headers = {"Authorization": f"Bearer {token}", "Prefer": "respond-async"}

    async def follow(
        self, body: dict[str, Any], look: float, accepted: Callable[[], object] = lambda: None
    ) -> Followed:
        """Send it, call `accepted`, poll until it has ended."""
        answer = await self._http.post("/v1/generate", json=body, headers=self._headers)
        accepted()
        told, first = list[Told](), True
        while True:
            job = answer.raise_for_status().json()
            if job["status"] not in ("queued", "running"):
                if job["status"] != "succeeded":
                    raise RuntimeError(f"{job['id']} {job['status']}: {job['error']}")
                ended = datetime.fromisoformat(job["finished_at"]).timestamp()
                ran = ended - datetime.fromisoformat(job["started_at"]).timestamp()
                cpu = job["usage"]["cpu_seconds"]
                return Followed(told=told, ended=ended, ran=ran, cpu=cpu)
            told.append(
                Told(
                    at=time.time(),
                    eta=job["eta_seconds"],
                    position=job["position"],
                    is_first=first,
                )
            )
            first = False
            await asyncio.sleep(look)
            path = job["links"]["self"]
            answer = await self._http.get(path, headers=self._headers)


class Replica:
    """The app's replica, which comes and goes."""

    def __init__(self, spec: AppSpec, redis_url: str, store: RedisJobStore) -> None:
        self._spec = spec
        self._redis_url = redis_url
        self._store = store
        self._process: ForkServerProcess | None = None

    def start(self) -> None:
        self._process = CONTEXT.Process(
            target=_pull, args=(self._spec, self._redis_url), daemon=True
        )
        self._process.start()

    def start_and_wait(self) -> None:
        self.start()
        _until(lambda: self._store.app_status(APP).state is AppState.READY)

    def stop(self) -> None:
        """Kill it; the app is cold afterwards."""
        if self._process is None:
            return
        self._process.kill()
        self._process.join()
        self._process = None
        for presence in self._store.app_status(APP).replicas:
            self._store.leave(APP, presence.id)


def mixed(draw: random.Random, sizes: Sequence[int], *, ranked: bool) -> dict[str, Any]:
    """A request as nobody expects the next to be."""
    return {
        "prompt": "a red circle on a blue background",
        "num_inference_steps": draw.randint(4, 60),
        "guidance_scale": draw.choice([1.0, 5.0]),
        "width": draw.choice(sizes),
        "height": draw.choice(sizes),
        "num_images": draw.choice([1, 1, 2, 3, 4]),
        "priority": draw.choice([0, 0, 0, 0, -5, 5]) if ranked else 0,
    }


async def warm_up(client: Client, bodies: Sequence[dict[str, Any]]) -> list[Followed]:
    """One job after the other."""
    return [await client.follow(body, START_LOOK) for body in bodies]


async def queue(
    clients: Sequence[Client], bodies: Sequence[dict[str, Any]], draw: random.Random, gap: float
) -> list[Followed]:
    """All jobs, sent `gap` seconds from each other in the mean, until all have ended."""
    async with asyncio.TaskGroup() as tasks:
        sent = list[asyncio.Task[Followed]]()
        for body in bodies:
            sent.append(tasks.create_task(draw.choice(clients).follow(body, LOOK)))
            await asyncio.sleep(draw.expovariate(1 / gap))
    return [task.result() for task in sent]


async def start(client: Client, replica: Replica, body: dict[str, Any]) -> Followed:
    """A job that comes to an app without a replica."""
    await asyncio.to_thread(replica.stop)
    placed = threading.Timer(PLACEMENT_SECONDS, replica.start)
    followed = await client.follow(body, START_LOOK, placed.start)
    await asyncio.to_thread(placed.join)
    return followed


def rows(name: str, jobs: Sequence[Followed], *, is_start: bool = False) -> list[list[str]]:
    """The lines of a table."""
    answers = [(told, job.ended - told.at) for job in jobs for told in job.told]
    later = [(told, left) for told, left in answers if not told.is_first and left >= SHORTEST]
    first = [(told, left) for told, left in answers if told.is_first]
    groups: dict[str, Callable[[Told], bool]] = {
        "all": lambda _: True,
        f"under {NEAR} ahead": lambda told: told.position is not None and told.position < NEAR,
        f"{NEAR} or more ahead": lambda told: told.position is not None and told.position >= NEAR,
        "running": lambda told: told.position is None,
    }
    if is_start:
        groups = {"all": groups["all"]}
    table = list[list[str]]()
    for when, among in (("accepted", first), ("polled", later)):
        for group, belongs in groups.items():
            chosen = [(told, left) for told, left in among if belongs(told)]
            if chosen:
                table.append([name, when, group, *_figures(chosen)])
    return table


def _figures(answers: Sequence[tuple[Told, float]]) -> list[str]:
    known = [(told.eta, left) for told, left in answers if told.eta is not None]
    if len(known) < 2:
        return [f"{len(known)} of {len(answers)}", *["-"] * 4]
    errors = [abs(eta - left) / left for eta, left in known]
    deciles = statistics.quantiles(errors, n=10, method="inclusive")
    return [
        f"{len(known)} of {len(answers)}",
        f"{statistics.median(left for _, left in known):.1f} s",
        f"{statistics.median(errors):.0%}",
        f"{deciles[8]:.0%}",
        f"{statistics.median(eta / left for eta, left in known):.2f}",
    ]


async def measure(url: str, tokens: Sequence[str], replica: Replica, options: Any) -> None:
    """Print the table."""
    draw = random.Random(options.seed)
    side = options.spec.defaults.width
    sizes = [size for size in (side // 2, side, side * 2) if _fits(options.spec, size)]
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=PATIENCE) as http:
        clients = [Client(http, token) for token in tokens]
        await asyncio.to_thread(replica.start_and_wait)
        warm = [mixed(draw, sizes, ranked=False) for _ in range(WARM_UP)]
        alone = await warm_up(clients[0], warm)
        gap = statistics.mean(job.ran for job in alone) / LOAD
        table = list[list[str]]()
        print(f"Sizes {sizes}; a job every {gap:.2f} s; warm-up: {_speed(alone)}.\n", flush=True)
        for name, senders, ranked in (
            ("one key, one priority", clients[:1], False),
            (f"{CLIENTS} keys, 3 priorities", clients, True),
        ):
            bodies = [mixed(draw, sizes, ranked=ranked) for _ in range(options.jobs)]
            before = os.getloadavg()[0]
            followed = await queue(senders, bodies, draw, gap)
            table += rows(name, followed)
            load = f"load average {before:.1f} to {os.getloadavg()[0]:.1f}"
            print(f"{name}: {load}, {_speed(followed)}.\n", flush=True)
        body = {"prompt": "a red circle on a blue background"}
        starts = [await start(clients[0], replica, body) for _ in range(options.starts)]
        if starts:
            table += rows("cold start", starts, is_start=True)
            print(f"Load average after the starts: {os.getloadavg()[0]:.1f}.\n")
    names = ["queue", "when", "which", "answers", "truth", "median", "p90", "told / truth"]
    for cells in (names, ["---"] * len(names), *table):
        print("| " + " | ".join(cells) + " |")


def _speed(jobs: Sequence[Followed]) -> str:
    """How much others on the machine took of the replica's time."""
    ran, cpu = sum(job.ran for job in jobs), sum(job.cpu for job in jobs)
    return f"the replica had {cpu / ran:.2f} of a core"


def _fits(spec: AppSpec, size: int) -> bool:
    defaults = spec.defaults
    is_allowed = defaults.min_size <= size <= defaults.max_size
    return is_allowed and size % defaults.size_multiple == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=80, help="of each queue")
    parser.add_argument("--starts", type=int, default=8, help="cold starts")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    checkpoint, defaults = inspect_checkpoint(options.model)
    options.spec = spec = AppSpec(
        name=APP, checkpoint=checkpoint, defaults=defaults, num_gpus=0, num_cpus=1,
        queue_limit=10_000,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(redis_url=None, state_dir=Path(folder))
        redis_url = ensure_redis(settings)
        store = RedisJobStore(connect(redis_url))
        store.register_app(spec)
        replica = Replica(spec, redis_url, store)
        try:
            with serving(serve, redis_url) as url:
                tokens = [new_client(store, f"client{number}") for number in range(CLIENTS)]
                asyncio.run(measure(f"{url}/{APP}", tokens, replica, options))
        finally:
            replica.stop()
            stop_redis(settings)


def _pull(spec: AppSpec, redis_url: str) -> None:
    """Be a replica until killed."""
    settings = replace(replica_settings(redis_url), lease=timedelta(seconds=5))
    Puller(spec, settings, born=time.monotonic())
    threading.Event().wait()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the replica does not come up")
        time.sleep(0.01)


if __name__ == "__main__":
    main()
