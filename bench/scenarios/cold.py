"""Scenarios that begin without a replica: S4 and S5."""

import asyncio
import os
import shutil
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from bench.open_loop import poisson
from bench.own_app import MODEL
from bench.scenarios.app_under_test import BURST, SHORT, AppUnderTest, Rows, latencies
from bench.scenarios.warm import burst_of
from sdserve.apps import app_name

APPS = 10
PLACES = 3  # replicas of those that there is room for
ZIPF = 1.1  # the second is asked 2 ** -ZIPF times as often as the first, and so on
RATE = 0.5  # requests a second


async def from_zero(app: AppUnderTest) -> Rows:
    """S4: one request, and many, at an app that was scaled to zero."""
    await app.until("cold")
    begin = time.perf_counter()
    job_id, accepted = await app.submit()
    await app.ended(job_id)
    seconds = time.perf_counter() - begin
    told = f"202 after {accepted * 1000:.0f} ms, picture after {seconds:.2f} s"
    await app.until("cold")
    many = await burst_of(app)
    return [
        ["S4", "one request, scaled to zero", told],
        ["S4", f"{BURST} at once, scaled to zero", many],
    ]


async def many_apps(app: AppUnderTest) -> Rows:
    """S5: more apps than places. Who waits takes the place of who has been idle for longest."""
    folder = Path(app.stack.environment["SD_MODELS_DIR"])
    files = [
        Path(shutil.copy(MODEL, folder / f"zipf-{number}.safetensors")) for number in range(APPS)
    ]
    share = f"{(os.cpu_count() or 1) / PLACES - 0.01:.2f}"
    await asyncio.to_thread(
        app.stack.run, "deploy_scripts.deploy_sd", "--gpus", "0", "--cpus", share,
        *(file.name for file in files),
    )  # fmt: skip
    await app.until("cold")  # the app of the other scenarios has a place too
    times = poisson(RATE, 4 * app.seconds, seed=1)
    names = Random(1).choices(
        [app_name(file) for file in files],
        [rank**-ZIPF for rank in range(1, APPS + 1)],
        k=len(times),
    )

    async def ask(due: float, name: str) -> tuple[float, dict[str, Any]]:
        await asyncio.sleep(due)
        begin = time.perf_counter()
        job = await app.ended((await app.submit(SHORT, app=name))[0])
        return time.perf_counter() - begin, job

    done = await asyncio.gather(*map(ask, times, names))
    statuses = Counter(job["status"] for _, job in done)
    drawn = [(took, job) for took, job in done if job["status"] == "succeeded"]
    loaded = [took for took, job in drawn if job["compute_metrics"]["load_seconds"]]
    warm = [took for took, job in drawn if not job["compute_metrics"]["load_seconds"]]
    return [
        [
            "S5",
            f"{APPS} apps, room for {PLACES} replicas, {len(done)} requests at {RATE:g}/s, "
            f"Zipf {ZIPF:g}",
            f"{statuses['succeeded']} of {len(done)} drawn; {len(warm)} warm: {latencies(warm)}; "
            f"{len(loaded)} had to load: {latencies(loaded)}",
        ]
    ]
