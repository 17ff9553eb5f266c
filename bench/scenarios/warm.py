"""Scenarios with a replica that is there: S2, S3, S6, S7, S8."""

import asyncio
import statistics
import time
from dataclasses import replace
from datetime import datetime

from bench.connection import Request
from bench.open_loop import fire, poisson
from bench.own_app import new_client
from bench.queue import fill, submission
from bench.scenarios.app_under_test import (
    BURST,
    PATIENCE,
    SHORT,
    AppUnderTest,
    Rows,
    latencies,
    latencies_of,
)
from bench.statistics import fairness, tail
from sdserve.store import connect

LOADS = (0.3, 0.6, 0.8, 0.95)  # of the measured capacity
KEYS, JOBS = 4, 10  # of S6: the first key has three times as many
STEPS, SIDES = (4, 12, 24), (64, 128)
POLLS = 500.0  # a second


async def poisson_loads(app: AppUnderTest) -> Rows:
    """S2: independent users at rising loads."""
    rows: Rows = []
    for load in LOADS:
        pace = await app.pace()
        run = await app.fire(load * pace.capacity)
        what = f"Poisson for {app.seconds:.0f} s at {load:.0%} ({pace})"
        rows.append(["S2", what, f"{latencies_of(run)}; {pace.goodput(run)}"])
    return rows


async def burst(app: AppUnderTest) -> Rows:
    """S3: many at once."""
    return [["S3", f"{BURST} at once, warm", await burst_of(app)]]


async def burst_of(app: AppUnderTest) -> str:
    """What came of many requests at once."""
    begin = time.perf_counter()
    accepted = await asyncio.gather(*(app.submit() for _ in range(BURST)))
    jobs = await asyncio.gather(*(app.ended(job_id) for job_id, _ in accepted))
    seconds = time.perf_counter() - begin
    drawn = sum(job["status"] == "succeeded" for job in jobs)
    name, slow = tail([took for _, took in accepted])
    return (
        f"{len(accepted)} of {BURST} accepted, {name} {slow:.2f} s; {drawn} drawn after "
        f"{seconds:.1f} s ({drawn / seconds:.1f}/s), {BURST - drawn} lost"
    )


async def mixed_keys(app: AppUnderTest) -> Rows:
    """S6: one key sends three times as much as each of the others, all at once."""
    store = app.store()
    tokens = [new_client(store, f"client{number}") for number in range(KEYS)]
    sent = list[tuple[int, str]]()
    for number in range(3 * JOBS):
        for key in range(KEYS if number < JOBS else 1):
            body = SHORT | {
                "num_inference_steps": STEPS[number % len(STEPS)],
                "width": SIDES[number % len(SIDES)],
                "height": SIDES[-1 - number % len(SIDES)],
            }
            job_id, _ = await app.submit(body, token=tokens[key])
            sent.append((key, job_id))
    jobs = await asyncio.gather(*(app.ended(job_id, token=tokens[key]) for key, job_id in sent))
    ends = [datetime.fromisoformat(job["finished_at"]).timestamp() for job in jobs]
    last = [
        max(end for (key, _), end in zip(sent, ends, strict=True) if key == each)
        for each in range(KEYS)
    ]
    served = [0] * KEYS
    for (key, _), end, job in zip(sent, ends, jobs, strict=True):
        if end <= min(last):
            served[key] += job["progress"]["steps"]
    return [
        [
            "S6",
            f"{KEYS} keys, one with three times the jobs, mixed sizes and steps",
            f"steps drawn until the first key had all: {', '.join(map(str, served))}; "
            f"Jain's index {fairness(served):.3f}",
        ]
    ]


async def poll_storm(app: AppUnderTest) -> Rows:
    """S7: polls of a job that waits, beside a steady load."""
    # A job of an app that is not deployed: it waits for ever.
    waiting = app.store().run(replace(submission(), client="")).job_id
    pace = await app.pace()
    poll = Request.make("GET", f"/v1/jobs/{waiting}")
    drawn, polls = await asyncio.gather(
        app.fire(0.6 * pace.capacity),
        fire(app.stack.url, poisson(POLLS, app.seconds, seed=2), [poll]),
    )
    seen = sum(shot.status == 200 for shot in polls.shots)
    return [
        [
            "S7",
            f"polls at {POLLS:.0f}/s, beside Poisson at 60% ({pace})",
            f"polls: {seen} of {len(polls.shots)} seen, {latencies_of(polls)}; pictures: "
            f"{latencies_of(drawn)}; {pace.goodput(drawn)}",
        ]
    ]


async def deep_queue(app: AppUnderTest) -> Rows:
    """S8: one warm client while very many jobs of another app wait."""
    await app.pace()
    before = await app.alone()
    begin = time.perf_counter()
    await asyncio.to_thread(fill, connect(app.redis_url, reply_timeout=PATIENCE), app.deep)
    filled = time.perf_counter() - begin
    await app.pace()
    after = await app.alone()
    return [
        [
            "S8",
            f"one warm client, {app.deep:,} jobs queued at another app in {filled:.0f} s",
            f"before: {latencies(before)}; with them: {latencies(after)}; ratio of the p50s "
            f"{statistics.median(after) / statistics.median(before):.2f}",
        ]
    ]
