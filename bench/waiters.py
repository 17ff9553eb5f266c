"""What long polls cost: memory of each, what others notice of them, how soon all are woken.

    python -m bench.waiters [--waiters 2000]
    python -m bench.waiters --url http://127.0.0.1:8000 --pid GATEWAY --pid PROXY

Without --url a gateway of its own, bare under uvicorn; with it a running stack, whose Redis is
found as by every command (SD_STATE_DIR, REDIS_URL). All wait for one job of an app that has no
replica, which is cancelled in the end. Prints Markdown.
"""

import argparse
import asyncio
import multiprocessing
import socket
import statistics
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import uvicorn

from api.edge import EdgeSettings
from api.gateway import create_app
from sdserve.generation import GenerationParams, ImageFormat
from sdserve.jobs import new_job_id
from sdserve.operations import Cancel, Submit
from sdserve.redis_server import ensure_redis, find_redis, stop_redis
from sdserve.settings import Settings, read_settings
from sdserve.store import RedisJobStore, connect

APP = "sd-waiters"
HOUR = timedelta(hours=1)
WAIT = 60  # seconds, the longest that a long poll may ask for
SETTLE = 8.0  # seconds, for the last polls to be read and registered
PROBES = 50


async def measure(url: str, redis_url: str, pids: Sequence[int], waiters: int) -> list[str]:
    """One row of the table."""
    redis = connect(redis_url)
    store = RedisJobStore(redis)
    job_id = new_job_id()
    params = GenerationParams(
        prompt="a red circle", negative_prompt="", num_inference_steps=1, guidance_scale=1,
        width=64, height=64, seed=0, scheduler="ddim", num_images=1, format=ImageFormat.PNG,
    )  # fmt: skip
    submit = Submit(job_id=job_id, app=APP, model="m", params=params, queue_limit=9, digest=job_id)
    store.run(submit)
    async with (
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=WAIT) as http,
        asyncio.TaskGroup() as tasks,
    ):
        alone = await _probe(http)
        before = [psutil.Process(pid).memory_info().rss for pid in pids]
        polls = [tasks.create_task(_poll(url, job_id)) for _ in range(waiters)]
        await asyncio.sleep(SETTLE)
        beside = await _probe(http)
        after = [psutil.Process(pid).memory_info().rss for pid in pids]
        clients: Any = redis.client_list()
        early = sum(poll.done() for poll in polls)
        store.run(Cancel(app=APP, job_id=job_id, job_ttl=HOUR))
        begin = time.perf_counter()
        answers = await asyncio.gather(*polls)
        woken = time.perf_counter() - begin
    grown = [
        f"{(last - first) / waiters / 1024:.0f}" for first, last in zip(before, after, strict=True)
    ]
    return [
        str(waiters), str(answers.count(200)), str(early), " + ".join(grown), str(len(clients)),
        f"{alone * 1000:.1f} ms", f"{beside * 1000:.1f} ms", f"{woken:.2f} s",
    ]  # fmt: skip


async def _poll(url: str, job_id: str) -> int:
    """The status of a long poll on a connection of its own."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(f"GET /v1/jobs/{job_id}?wait={WAIT} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    status = int((await reader.readline()).split()[1])
    writer.close()
    return status


async def _probe(http: httpx.AsyncClient) -> float:
    """Seconds that an ordinary request takes: the median of several."""
    times = list[float]()
    for _ in range(PROBES):
        begin = time.perf_counter()
        (await http.get("/v1/health")).raise_for_status()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _own_gateway(redis_url: str, server: socket.socket) -> None:
    """Serve on `server` until killed."""
    settings = EdgeSettings(redis_url=redis_url, job_ttl=HOUR, sync_wait=HOUR)
    config = uvicorn.Config(create_app(settings), log_level="warning")
    uvicorn.Server(config).run([server])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--waiters", type=int, default=2000)
    parser.add_argument("--url", help="of a running stack")
    parser.add_argument("--pid", type=int, action="append", default=[], help="to weigh")
    options = parser.parse_args()
    if options.url:
        redis_url = find_redis(read_settings())
        if redis_url is None:
            parser.error("that stack's Redis is not found: set SD_STATE_DIR as it was")
        row = asyncio.run(measure(options.url, redis_url, options.pid, options.waiters))
    else:
        with bare_gateway() as (url, redis_url, pid):
            row = asyncio.run(measure(url, redis_url, [pid], options.waiters))
    names = [
        "waiters", "answered 200", "too early", "KiB each", "Redis clients",
        "other requests, alone", "beside", "all woken in",
    ]  # fmt: skip
    for cells in (names, ["---"] * len(names), row):
        print("| " + " | ".join(cells) + " |")


@contextmanager
def bare_gateway() -> Generator[tuple[str, str, int]]:
    """A gateway of its own, bare under uvicorn: its URL, its Redis', its process."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(redis_url=None, state_dir=Path(folder))
        redis_url = ensure_redis(settings)
        server = socket.create_server(("127.0.0.1", 0), backlog=4096)
        context = multiprocessing.get_context("spawn")
        gateway = context.Process(target=_own_gateway, args=(redis_url, server))
        gateway.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", redis_url, gateway.pid or 0
        finally:
            gateway.kill()
            gateway.join()
            stop_redis(settings)


if __name__ == "__main__":
    main()
