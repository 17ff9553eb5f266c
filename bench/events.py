"""How soon a change of a job is seen by those who watch it, and what each of them costs.

    python -m bench.events [--streams 100] [--idle 2000]
    python -m bench.events --url http://127.0.0.1:8000 --pid GATEWAY --pid PROXY

Without --url a gateway of its own, bare under uvicorn; with it a running stack, whose Redis is
found as by every command (SD_STATE_DIR, REDIS_URL). The jobs belong to an app without a replica:
this process plays it. Latency is from before the script that changes the job (and publishes) to
the last byte of the event at the client. Prints Markdown.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence
from datetime import timedelta
from urllib.parse import urlsplit

import psutil

from bench.waiters import bare_gateway
from sdserve.apps import AppState, ReplicaPresence
from sdserve.generation import GenerationParams, ImageFormat
from sdserve.jobs import new_job_id
from sdserve.operations import Beat, Cancel, Claim, JobProgress, Release, Submit
from sdserve.redis_server import find_redis
from sdserve.settings import read_settings
from sdserve.store import RedisJobStore, connect

APP = "sd-events"
HOUR = timedelta(hours=1)
ROUNDS = 100
PAUSE = 0.2  # seconds between two changes, as a replica sends them
SETTLE = 5.0  # seconds, for the last streams to be open
PRESENCE = ReplicaPresence(id="bench", state=AppState.READY, phase="ready", pid=1, node="bench")


class Stream:
    """One who watches a job: notes when its event of each step was complete."""

    def __init__(self, url: str, job_id: str) -> None:
        self._url = urlsplit(url)
        self._job_id = job_id
        self.seen: dict[int, float] = {}  # step -> when, perf_counter

    async def watch(self) -> None:
        reader, writer = await asyncio.open_connection(
            self._url.hostname, self._url.port, limit=2**20
        )
        path = f"/v1/jobs/{self._job_id}/events"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        status = await reader.readline()
        if status.split()[1:2] != [b"200"]:
            raise ConnectionError(f"{path} was answered with {status!r}: no events to time")
        step = 0
        # An empty line ends an event. Those of the framing do no harm: after the head no step was
        # told yet, after a chunk its event was noted before.
        while line := await reader.readline():
            if line.startswith(b"data:"):
                step = int(line.partition(b'"step":')[2].partition(b",")[0])
            elif line in (b"\n", b"\r\n"):
                self.seen.setdefault(step, time.perf_counter())
            elif line == b"0\r\n":
                break
        writer.close()


async def measure(
    url: str, redis_url: str, pids: Sequence[int], streams: int, idle: int
) -> list[str]:
    """One row of the table."""
    store = RedisJobStore(connect(redis_url))
    waiting, watched = _submit(store, APP + "-idle"), _submit(store, APP)
    before = [psutil.Process(pid).memory_info().rss for pid in pids]
    async with asyncio.TaskGroup() as tasks:
        for _ in range(idle):
            tasks.create_task(Stream(url, waiting).watch())
        await asyncio.sleep(SETTLE)
        after = [psutil.Process(pid).memory_info().rss for pid in pids]
        (claim,) = store.run(Claim(app=APP, replica="bench", count=1, lease=HOUR))
        viewers = [Stream(url, watched) for _ in range(streams)]
        for viewer in viewers:
            tasks.create_task(viewer.watch())
        await asyncio.sleep(SETTLE)
        sent = dict[int, float]()
        for step in range(1, ROUNDS + 1):
            told = JobProgress(job_id=watched, fence=claim.fence, step=step, phase=f"step {step}")
            beat = Beat(app=APP, presence=PRESENCE, lease=HOUR, jobs=[told])
            sent[step] = time.perf_counter()
            await asyncio.to_thread(store.run, beat)
            await asyncio.sleep(PAUSE)
        await asyncio.sleep(SETTLE)
        for app, job_id in ((APP + "-idle", waiting), (APP, watched)):
            store.run(Cancel(app=app, job_id=job_id, job_ttl=HOUR))
        store.run(Release(app=APP, job_id=watched, fence=claim.fence, job_ttl=HOUR))
    store.leave(APP, PRESENCE.id)
    late = [
        (viewer.seen[step] - sent[step]) * 1000
        for viewer in viewers
        for step in sent
        if step in viewer.seen
    ]
    percent = statistics.quantiles(late, n=100)
    grown = [
        f"{(last - first) / max(1, idle) / 1024:.0f}"
        for first, last in zip(before, after, strict=True)
    ]
    return [
        str(streams), str(idle), f"{len(late)} of {streams * ROUNDS}", f"{percent[49]:.1f} ms",
        f"{percent[98]:.1f} ms", f"{max(late):.1f} ms", " + ".join(grown),
    ]  # fmt: skip


def _submit(store: RedisJobStore, app: str) -> str:
    job_id = new_job_id()
    params = GenerationParams(
        prompt="a red circle", negative_prompt="", num_inference_steps=ROUNDS, guidance_scale=1,
        width=64, height=64, seed=0, scheduler="ddim", num_images=1, format=ImageFormat.PNG,
    )  # fmt: skip
    submit = Submit(job_id=job_id, app=app, model="m", params=params, queue_limit=9, digest=job_id)
    return store.run(submit).job_id


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", type=int, default=100, help="of the job that changes")
    parser.add_argument("--idle", type=int, default=2000, help="of a job that waits")
    parser.add_argument("--url", help="of a running stack")
    parser.add_argument("--pid", type=int, action="append", default=[], help="to weigh")
    options = parser.parse_args()
    if options.url:
        redis_url = find_redis(read_settings())
        if redis_url is None:
            parser.error("that stack's Redis is not found: set SD_STATE_DIR as it was")
        run = measure(options.url, redis_url, options.pid, options.streams, options.idle)
        row = asyncio.run(run)
    else:
        with bare_gateway() as (url, redis_url, pid):
            row = asyncio.run(measure(url, redis_url, [pid], options.streams, options.idle))
    names = ["streams", "idle", "events seen", "p50", "p99", "longest", "KiB each"]
    for cells in (names, ["---"] * len(names), row):
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
