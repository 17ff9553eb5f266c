"""The product under load, whole: Poisson, burst, from zero, mixed keys, a killed replica.

    python -m bench scenarios [--seconds 20] [--only S2 S9] [--out docs]

A stack of its own with the demo model. Requests are sent open loop (bench/open_loop.py): a latency
counts from when its request was due. The SLO is three times the latency of a warm client alone.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from bench.connection import Request
from bench.machine import facts
from bench.open_loop import Run, fire, poisson, saturate
from bench.own_app import MODEL, new_client
from bench.own_stack import OwnStack, own_stack
from bench.report import machine_line, replace_section, table
from bench.statistics import fairness, tail
from sdserve.redis_server import find_redis
from sdserve.settings import Settings
from sdserve.store import RedisJobStore, connect

PATIENCE = 240.0  # seconds for anything that must happen
LOADS = (0.3, 0.6, 0.8, 0.95)  # of the measured capacity
SLO = 3.0  # times the latency of a client alone
BURST = 200
IDLE_TIMEOUT = 5  # seconds until the app scales to zero
CLIENTS = 4
SHORT = {"prompt": "a red circle on a blue background", "num_inference_steps": 4, "seed": 1}
LATER = {"Prefer": "respond-async"}
Rows = list[list[str]]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The stack, and what is known of it."""

    stack: OwnStack
    http: httpx.AsyncClient
    seconds: float  # of an open-loop run
    capacity: float  # pictures per second
    alone: float  # seconds of a request, the median of one client

    @property
    def request(self) -> Request:
        """One that is held until its picture is there."""
        return Request.make(
            "POST", f"/{self.stack.app}/v1/generate", body=json.dumps(SHORT).encode(),
            headers=("Accept: image/png", "Prefer: wait=60"),
        )  # fmt: skip

    async def fire(self, load: float) -> Run:
        times = poisson(load * self.capacity, self.seconds, seed=1)
        return await fire(self.stack.url, times, [self.request])

    def goodput(self, run: Run) -> str:
        """The share of requests that had their picture within the SLO."""
        good = sum(shot.status == 200 and shot.done - shot.due <= SLO * self.alone
                   for shot in run.shots)  # fmt: skip
        return f"{good} of {len(run.shots)} ({good / len(run.shots):.0%})"

    async def submit(self, body: dict[str, Any], token: str | None = None) -> tuple[str, float]:
        """The id of a job, and the seconds until it was known."""
        headers = LATER | ({"Authorization": f"Bearer {token}"} if token else {})
        begin = time.perf_counter()
        answer = await self.http.post(f"/{self.stack.app}/v1/generate", json=body, headers=headers)
        if answer.status_code != 202:
            raise RuntimeError(f"not accepted: {answer.status_code} {answer.text}")
        return answer.json()["id"], time.perf_counter() - begin

    async def ended(self, job_id: str, token: str | None = None) -> dict[str, Any]:
        """The job, once it is final."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        while True:
            answer = await self.http.get(f"/v1/jobs/{job_id}", params={"wait": 30}, headers=headers)
            job = answer.raise_for_status().json()
            if job["status"] not in ("queued", "running"):
                return job

    async def health(self) -> dict[str, Any]:
        return (await self.http.get(f"/{self.stack.app}/v1/health")).json()

    async def until(self, state: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while (await self.health())["state"] != state:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the app does not become {state}")
            await asyncio.sleep(0.2)


async def poisson_loads(bench: Bench) -> Rows:
    """S2."""
    rows: Rows = []
    for load in LOADS:
        run = await bench.fire(load)
        name, slow = tail([shot.done - shot.due for shot in run.shots])
        rows.append(
            [
                "S2",
                f"Poisson, {load:.0%} of {bench.capacity:.1f}/s for {bench.seconds:.0f} s",
                f"p50 {run.latency(0.5):.3f} s, {name} {slow:.3f} s, lateness p99 "
                f"{run.lateness_p99 * 1000:.0f} ms; within {SLO:.0f}x of alone: "
                f"{bench.goodput(run)}",
            ]
        )
    return rows


async def burst(bench: Bench) -> Rows:
    """S3."""
    return [["S3", f"{BURST} at once, warm", await _burst(bench)]]


async def _burst(bench: Bench) -> str:
    begin = time.perf_counter()
    accepted = await asyncio.gather(*(bench.submit(SHORT) for _ in range(BURST)))
    jobs = await asyncio.gather(*(bench.ended(job_id) for job_id, _ in accepted))
    seconds = time.perf_counter() - begin
    drawn = sum(job["status"] == "succeeded" for job in jobs)
    name, slow = tail([took for _, took in accepted])
    return (
        f"{len(accepted)} of {BURST} accepted, {name} {slow:.2f} s; {drawn} drawn after "
        f"{seconds:.1f} s, {BURST - drawn} lost"
    )


async def from_zero(bench: Bench) -> Rows:
    """S4."""
    rows: Rows = []
    await bench.until("cold")
    begin = time.perf_counter()
    job_id, accepted = await bench.submit(SHORT)
    await bench.ended(job_id)
    seconds = time.perf_counter() - begin
    told = f"202 after {accepted * 1000:.0f} ms, picture after {seconds:.2f} s"
    rows.append(["S4", "one request, scaled to zero", told])
    await bench.until("cold")
    rows.append(["S4", f"{BURST} at once, scaled to zero", await _burst(bench)])
    return rows


async def mixed_keys(bench: Bench) -> Rows:
    """S6: one key sends three times as much as each of the others, all at once."""
    redis_url = find_redis(Settings(state_dir=Path(bench.stack.environment["SD_STATE_DIR"])))
    if redis_url is None:
        raise RuntimeError("the stack's Redis is not found")
    store = RedisJobStore(connect(redis_url))
    tokens = [new_client(store, f"client{number}") for number in range(CLIENTS)]
    sent = list[tuple[int, str]]()
    for number in range(30):
        for client in range(CLIENTS):
            if client and number >= 10:
                continue
            body = SHORT | {
                "num_inference_steps": (4, 12, 24)[number % 3],
                "width": (64, 128)[number % 2],
                "height": (128, 64, 128)[number % 3],
            }
            job_id, _ = await bench.submit(body, tokens[client])
            sent.append((client, job_id))
    jobs = await asyncio.gather(*(bench.ended(job_id, tokens[client]) for client, job_id in sent))
    ends = [datetime.fromisoformat(job["finished_at"]).timestamp() for job in jobs]
    last = [
        max(end for (client, _), end in zip(sent, ends, strict=True) if client == each)
        for each in range(CLIENTS)
    ]
    served = [0] * CLIENTS
    for (client, _), end, job in zip(sent, ends, jobs, strict=True):
        if end <= min(last):
            served[client] += job["progress"]["steps"]
    return [
        [
            "S6",
            f"{CLIENTS} keys, one with three times the jobs, mixed sizes and steps",
            f"steps drawn until the first key had all: {', '.join(map(str, served))}; "
            f"Jain's index {fairness(served):.3f}",
        ]
    ]


async def killed_replica(bench: Bench) -> Rows:
    """S9: kill -9 in the middle of a Poisson run."""
    await bench.ended((await bench.submit(SHORT))[0])  # warm
    (replica,) = (await bench.health())["replicas"]
    killed = bench.seconds / 3

    async def kill() -> None:
        await asyncio.sleep(killed)
        os.kill(replica["pid"], signal.SIGKILL)

    run, _ = await asyncio.gather(bench.fire(0.5), kill())
    late = [shot for shot in run.shots if shot.done - shot.due > SLO * bench.alone]
    after = max((shot.due for shot in late if shot.due >= killed), default=killed) - killed
    lost = sum(shot.status != 200 for shot in run.shots)
    slowest = max(shot.done - shot.due for shot in run.shots)
    return [
        [
            "S9",
            "kill -9 of the replica, Poisson at 50 %",
            f"{lost} of {len(run.shots)} not answered 200; slowest {slowest:.2f} s; within "
            f"{SLO:.0f}x of alone again {after:.1f} s after the kill; {bench.goodput(run)}",
        ]
    ]


SCENARIOS: dict[str, Callable[[Bench], Awaitable[Rows]]] = {
    "S2": poisson_loads,
    "S3": burst,
    "S9": killed_replica,
    "S6": mixed_keys,
    "S4": from_zero,
}
ELSEWHERE: Rows = [
    ["S1", "one warm client", "`python -m bench compare`, above"],
    ["S5", "10 apps on one GPU", "not measured: it needs a GPU"],
    ["S7", "polls at 500/s beside generation", "`python -m bench.control`, below"],
    ["S8", "1,000,000 queued", "`python -m bench.depth`, below"],
    ["S10", "100 idle apps", "`python -m bench.idle`, below"],
]


async def measure(stack: OwnStack, seconds: float, only: Sequence[str]) -> Rows:
    """The lines of the table."""
    async with httpx.AsyncClient(
        base_url=stack.url, timeout=PATIENCE, trust_env=False,
        limits=httpx.Limits(max_connections=BURST),
    ) as http:  # fmt: skip
        bench = Bench(stack=stack, http=http, seconds=seconds, capacity=0, alone=0)
        await bench.ended((await bench.submit(SHORT))[0])
        await bench.until("ready")
        print("alone, then saturated ...", file=sys.stderr, flush=True)
        alone = await fire(stack.url, [0.5 * number for number in range(20)], [bench.request])
        bench = Bench(
            stack=stack,
            http=http,
            seconds=seconds,
            capacity=await saturate(
                stack.url, bench.request, connections=CLIENTS, seconds=seconds / 2
            ),
            alone=statistics.median(shot.done - shot.due for shot in alone.shots),
        )
        told = f"{bench.alone:.3f} s alone; {bench.capacity:.2f}/s saturated"
        rows: Rows = [["", "a picture of 4 steps", told]]
        for name, scenario in SCENARIOS.items():
            if name in only:
                print(f"{name} ...", file=sys.stderr, flush=True)
                rows += await scenario(bench)
        return rows + ELSEWHERE


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench scenarios", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="of an open-loop run")
    parser.add_argument("--only", nargs="*", default=list(SCENARIOS), choices=list(SCENARIOS))
    parser.add_argument("--out", type=Path, help="the folder of performance.md")
    options = parser.parse_args(arguments)
    machine = facts(threads=1)
    deploy = ["--queue-limit", "1000", "--idle-timeout", str(IDLE_TIMEOUT)]
    print("starting the stack ...", file=sys.stderr, flush=True)
    with own_stack(MODEL, deploy) as stack:
        rows = asyncio.run(measure(stack, options.seconds, options.only))
    found = {
        "machine": machine | {"load_average_after": os.getloadavg()},
        "command": f"python -m bench scenarios --seconds {options.seconds:g}",
    }
    text = "\n".join([machine_line(found), "", *table(["", "scenario", "figures"], rows)])
    print(text)
    if options.out:
        replace_section(options.out / "performance.md", "scenarios", text)


if __name__ == "__main__":
    main()
