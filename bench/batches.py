"""Small jobs through `submit_batch` against the same ones submitted singly: images a second.

    python -m bench.batches [--jobs 100] [--steps 4] [--blocks 5]

Gateway and app under uvicorn, one replica and the batches' RQ worker in other processes, a Redis.
Singly is `respond-async` of all jobs at once, each then long-polled and saved by `AsyncSdClient`.
The two take turns (ABBA); the time is from the call to the last image on the disk. Prints Markdown.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from bench.own_app import APP, own_app
from bench.statistics import abba, bootstrap_ratio
from deploy_scripts.submit_batch import main as submit_batch
from sdserve.client import AsyncSdClient

PROMPT = "a red circle on a blue background"
BATCH, SINGLY = "submit_batch", "singly"


def in_batch(url: str, jobs: int, steps: int, folder: Path) -> None:
    """All of them by the command, as a user gives it."""
    file = folder / "prompts.txt"
    file.write_text(f"{PROMPT}\n" * jobs)
    arguments = [str(file), "--app", APP, "--out", str(folder / "out"), "--url", url]
    with (folder / "log").open("w") as log, contextlib.redirect_stdout(log):
        code = submit_batch([*arguments, "--steps", str(steps)])
    if code != 0:
        raise RuntimeError(f"submit_batch ended with {code}")


def singly(url: str, jobs: int, steps: int, folder: Path) -> None:
    """Each by itself, all at once."""

    async def draw(client: AsyncSdClient) -> None:
        body = {"prompt": PROMPT, "num_inference_steps": steps}
        job = await client.submit(APP, body, prefer="respond-async")
        await client.save(await client.wait(job.id), folder / "out")

    async def draw_all() -> None:
        async with AsyncSdClient(url) as client, asyncio.TaskGroup() as tasks:
            for _ in range(jobs):
                tasks.create_task(draw(client))

    asyncio.run(draw_all())


WAYS: dict[str, Callable[[str, int, int, Path], None]] = {BATCH: in_batch, SINGLY: singly}


def measure(url: str, jobs: int, steps: int, blocks: int) -> None:
    """Print the table."""
    rates: dict[str, list[list[float]]] = {way: [[] for _ in range(blocks)] for way in WAYS}
    for block, turns in enumerate([list(WAYS), *abba(list(WAYS), blocks)], start=-1):
        for way in turns:
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                WAYS[way](url, jobs, steps, Path(folder))
                rate = jobs / (time.perf_counter() - began)
                drawn = len(list((Path(folder) / "out").glob("*.png")))
            if drawn != jobs:
                raise RuntimeError(f"{way}: {drawn} images instead of {jobs}")
            print(f"{way}: {rate:.1f} images/s", file=sys.stderr, flush=True)
            if block >= 0:  # the first turn of each warms up
                rates[way][block].append(rate)
    print("| way | images/s, median | lowest | highest |\n| --- | --- | --- | --- |")
    for way in WAYS:
        found = [rate for of_block in rates[way] for rate in of_block]
        print(f"| {way} | {statistics.median(found):.1f} | {min(found):.1f} | {max(found):.1f} |")
    ratio = bootstrap_ratio(rates[BATCH], rates[SINGLY])
    print(f"\n{BATCH} / {SINGLY}: {ratio}; load average {os.getloadavg()[0]:.1f}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=100, help="of each turn")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=5, help="of two turns of each way")
    options = parser.parse_args()
    with (
        own_app() as app,
        _feeding(app.redis_url),
    ):
        measure(app.gateway, options.jobs, options.steps, options.blocks)


@contextmanager
def _feeding(redis_url: str) -> Generator[None]:
    """A worker that hands lines to the queue."""
    command = [sys.executable, "-m", "workers.main", "batches"]
    environment = {**os.environ, "REDIS_URL": redis_url}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)  # noqa: S603 (a worker of ours)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
