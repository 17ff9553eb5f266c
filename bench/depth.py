"""What a poll of a waiting job costs, by the depth of the queue that it waits in.

    python -m bench.depth [--depths 1000 1000000] [--polls 500]

A gateway of its own, bare under uvicorn, and a Redis. The jobs that are polled, and those that a
poll is told of one by one, are submitted; of those between there is the place in the queue only,
since nothing else of them is read. Prints Markdown: of each depth the time of a poll over HTTP, and
of the script behind it with its round trip.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import httpx
from redis import Redis

from bench.waiters import bare_gateway
from sdserve import keys
from sdserve.generation import ComputeMetrics, GenerationParams, ImageFormat
from sdserve.jobs import JobStatus, new_job_id
from sdserve.limits import ResultBudget
from sdserve.operations import Claim, Finish, Look, Submit
from sdserve.pace import Measured, Work
from sdserve.store import RedisJobStore, connect

APP = "sd-depth"
HOUR = timedelta(hours=1)
TOLD, POLLED = 100, 20  # jobs at the front of the queue, and at its end
BATCH = 10_000  # places made in a call
FILL_TIMEOUT = 30.0  # seconds
PARAMS = GenerationParams(
    prompt="a red circle", negative_prompt="", num_inference_steps=20, guidance_scale=5.0,
    width=128, height=128, seed=0, scheduler="ddim", num_images=1, format=ImageFormat.PNG,
)  # fmt: skip


def submit(store: RedisJobStore, priority: int) -> str:
    job_id = new_job_id()
    return store.run(
        Submit(
            job_id=job_id, app=APP, model="m", params=PARAMS, queue_limit=10**9, digest=job_id,
            priority=priority,
        )
    ).job_id  # fmt: skip


def learn(store: RedisJobStore) -> None:
    """Let the app finish a job, so that it has an ETA."""
    submit(store, 0)
    (job,) = store.run(Claim(app=APP, replica="bench", count=1, lease=HOUR))
    metrics = ComputeMetrics(
        query_duration_seconds=1.0, replica_cpu_percent=0.0, replica_memory_mb=0.0,
        replica_num_cpus=1.0,
    )  # fmt: skip
    store.run(
        Finish(
            app=APP, job_id=job.id, fence=job.fence, status=JobStatus.SUCCEEDED, job_ttl=HOUR,
            results=ResultBudget(ttl=HOUR), metrics=metrics,
            measured=Measured(
                work=Work.of(PARAMS), denoise_seconds=1.0, picture_seconds=0.1, file_seconds=0.1
            ),
        )
    )  # fmt: skip


def fill(redis: Redis, depth: int) -> None:
    """Make places between the front and the end until so many wait."""
    there: Any = redis.zcard(keys.QUEUE + APP)
    for first in range(there, depth, BATCH):
        batch = range(first, min(first + BATCH, depth))
        redis.zadd(keys.QUEUE + APP, {new_job_id(): number for number in batch})


def measure(http: httpx.Client, store: RedisJobStore, ids: Sequence[str], polls: int) -> list[str]:
    """The last cells of a row."""

    def poll(job_id: str) -> None:
        job = http.get(f"/v1/jobs/{job_id}").raise_for_status().json()
        if job["eta_seconds"] is None or job["position"] is None:
            raise RuntimeError(f"not what is to be measured: {job}")

    def times(call: Callable[[str], object]) -> list[float]:
        """Milliseconds."""
        taken = list[float]()
        for number in range(polls):
            begin = time.perf_counter()
            call(ids[number % len(ids)])
            taken.append((time.perf_counter() - begin) * 1000)
        return taken

    times(poll)  # connections, code
    of_poll = times(poll)
    of_look = times(lambda job_id: store.run(Look(job_id=job_id)))
    return [
        f"{statistics.median(of_poll):.1f} ms",
        f"{statistics.quantiles(of_poll, n=100)[98]:.1f} ms",
        f"{statistics.median(of_look):.2f} ms",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[1000, 1_000_000], help="rising")
    parser.add_argument("--polls", type=int, default=500)
    options = parser.parse_args()
    table = list[list[str]]()
    with bare_gateway() as (url, redis_url, _pid):
        redis = connect(redis_url, reply_timeout=FILL_TIMEOUT)
        store = RedisJobStore(redis)
        learn(store)
        for _ in range(TOLD):
            submit(store, 5)
        ids = [submit(store, -5) for _ in range(POLLED)]
        with httpx.Client(base_url=url, trust_env=False) as http:
            for depth in options.depths:
                fill(redis, depth)
                row = measure(http, store, ids, options.polls)
                table.append([str(depth), *row, f"{os.getloadavg()[0]:.1f}"])
    names = ["waiting", "poll p50", "p99", "look p50", "load average"]
    for cells in (names, ["---"] * len(names), *table):
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
