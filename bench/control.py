"""The control plane of a running stack: what a 202, a poll and a list take, cold and busy.

    SD_MAX_JOBS=100000 SD_MAX_JOBS_PER_KEY=100000 make up
    python -m bench.control [--seconds 15] [--markdown FILE]

In the environment of that stack (SD_STATE_DIR, SD_HTTP_PORT, SD_API_KEY). The cold app is a demo
checkpoint that asks for one GPU more than the cluster has: all of the product is at work, its
replica waits for a place for ever. The busy one draws on all cores. Everything is measured beside
FastAPI alone under uvicorn, in turn, by a generator on the same machine; the method is that of
docs/performance.md. Prints Markdown.
"""

import argparse
import asyncio
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import ray
import uvloop

from bench.bare import bare_server
from bench.connection import Connection, Request
from bench.open_loop import Run, fire, poisson, saturate
from deploy_scripts import cluster
from deploy_scripts.deploy import Deployer, Wishes
from sdserve.redis_server import find_redis
from sdserve.settings import Settings, read_settings

DEMO = Path(__file__).parent.parent / "demo_models" / "tiny-shapes-sd15.safetensors"
COLD, BUSY = "bench-cold", "bench-busy"
LIMIT = 120.0  # seconds for anything to come up
SUBMITS, POLLS, LISTS = 100.0, 500.0, 70.0  # a second
BURST = 200
CONNECTIONS = 16  # of the closed loop
BODY = {"prompt": "a red circle on a blue background", "num_inference_steps": 20, "seed": 1}
LONG = {"prompt": "a red circle", "num_inference_steps": 150, "num_images": 8}


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Seconds, or answers a second, that a row should reach."""

    text: str
    is_met: Callable[[float, float], bool]  # by (p50, p99), or by (capacity, bare capacity)


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The running stack, as seen from outside."""

    url: str
    headers: tuple[str, ...]

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Request:
        headers = (*self.headers, *(("Prefer: respond-async",) if body else ()))
        data = json.dumps(body).encode() if body else b""
        return Request.make(method, path, body=data, headers=headers)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=15, help="of each open-loop run")
    parser.add_argument("--markdown", type=Path, help="append the table to this file too")
    options = parser.parse_args()
    settings = read_settings()
    if not cluster.is_running(settings):
        parser.error("no stack runs in this environment: make up")
    key = os.environ.get("SD_API_KEY")
    stack = Stack(
        url=f"http://127.0.0.1:{settings.http_port}",
        headers=(f"Authorization: Bearer {key}",) if key else (),
    )
    with _apps(settings) as proxy:
        lines = uvloop.run(_measure(stack, options.seconds))
    cpu = _processor()
    head = [
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores ({cpu}), proxy {proxy}, "
        f"load average {os.getloadavg()[0]:.1f} after, `python -m bench.control "
        f"--seconds {options.seconds:g}`",
        "",
        "| | rate | p50 | p99 | bare p50, p99 | ratio of p50s | generator late, p99 | goal | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    table = "\n".join(head + lines)
    print(table)
    if options.markdown:
        with options.markdown.open("a") as file:
            file.write(table + "\n")


async def _measure(stack: Stack, seconds: float) -> list[str]:
    """The rows of the table."""
    submit = stack.request("POST", f"/sd-{COLD}/v1/generate", BODY)
    first = await _ask(stack.url, submit)
    job: dict[str, Any] = json.loads(first)
    poll = stack.request("GET", f"/v1/jobs/{job['id']}")
    app_poll = stack.request("GET", f"/sd-{COLD}/v1/jobs/{job['id']}")
    models = stack.request("GET", "/v1/models")
    with bare_server(job) as bare:
        bare_submit = Request.make("POST", "/v1/generate", body=json.dumps(BODY).encode())
        bare_poll = Request.make("GET", f"/v1/jobs/{job['id']}")
        await _until_open(bare)

        async def beside(name: str, rate: float, ours: Request, theirs: Request, goal: Goal) -> str:
            long_enough = max(seconds, 1100 / rate)  # for a 99th percentile
            bare_run = await fire(bare, poisson(rate, long_enough, seed=1), [theirs])
            run = await fire(stack.url, poisson(rate, long_enough, seed=2), [ours])
            return _row(name, f"{rate:g}/s", run, bare_run, goal)

        rows = [
            await beside("P1 202, cold", SUBMITS, submit, bare_submit, _within(0.005, 0.025)),
            await beside("P3 poll (gateway)", POLLS, poll, bare_poll, _within(None, 0.015)),
            await beside("P3 poll (app)", POLLS, app_poll, bare_poll, _within(None, 0.015)),
            await beside("P10 /v1/models", LISTS, models, bare_poll, _within(None, 0.05)),
        ]
        for name, path in (("gateway", poll), ("app", app_poll)):
            theirs = await saturate(bare, bare_poll, connections=CONNECTIONS, seconds=seconds / 3)
            ours = await saturate(stack.url, path, connections=CONNECTIONS, seconds=seconds / 3)
            is_met = "met" if ours >= max(1500, 0.4 * theirs) else "**no**"
            rows.append(
                f"| P3 polls a second ({name}), closed loop of {CONNECTIONS} | {ours:.0f}/s | | | "
                f"{theirs:.0f}/s | {ours / theirs:.2f} | | >= 1500/s, >= 0.4 x bare | {is_met} |"
            )
        burst = await fire(stack.url, [0.0] * BURST, [submit])
        lost = BURST - burst.statuses[202]
        rows.append(
            f"| C8 {BURST} at once, cold | | {_ms(burst.latency(0.5))} | {_ms(burst.latency(0.99))}"
            f" | | | | 0 without a 202 | {lost} lost: {'met' if not lost else '**no**'} |"
        )
        await _keep_busy(stack, seconds)
        psutil.cpu_percent()
        rows.append(
            await beside("P2 202, saturated", SUBMITS, submit, bare_submit, _within(None, 0.05))
        )
        rows.append(await beside("poll, saturated", SUBMITS, poll, bare_poll, _within(None, 0.05)))
        rows.append(f"| CPU in use meanwhile | {psutil.cpu_percent():.0f} % | | | | | | | |")
    return rows


@contextmanager
def _apps(settings: Settings) -> Generator[str]:
    """Deploy the cold and the busy app; yields the name of the proxy."""
    redis_url = find_redis(settings)
    assert redis_url is not None  # noqa: S101 (the cluster runs)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        cluster.connect(settings)
        proxy = cluster.running_proxy()
        deployer = Deployer(settings, redis_url)
        files = [Path(shutil.copy(DEMO, f"{folder}/{name}.safetensors")) for name in (COLD, BUSY)]
        resources = ray.cluster_resources()
        wishes = Wishes(
            gpus=0, queue_limit=10**6, cpus=resources["CPU"], idle_timeout=timedelta(hours=1)
        )
        cold, busy = deployer.specify(files, wishes)
        deployer.deploy(replace(cold, num_gpus=resources.get("GPU", 0) + 1, num_cpus=0))
        deployer.deploy(busy)
        ray.shutdown()  # its threads are not to disturb the generator
        try:
            yield str(proxy)
        finally:
            cluster.connect(settings)
            for app in (cold, busy):
                deployer.delete(app.name)
            ray.shutdown()


async def _keep_busy(stack: Stack, seconds: float) -> None:
    """Give the busy app work for longer than the rest takes; returns when it draws."""
    request = stack.request("POST", f"/sd-{BUSY}/v1/generate", LONG)
    ids = [json.loads(await _ask(stack.url, request))["id"] for _ in range(round(20 * seconds))]
    look = stack.request("GET", f"/v1/jobs/{ids[0]}")
    deadline = time.monotonic() + LIMIT
    while json.loads(await _ask(stack.url, look))["status"] == "queued":
        if time.monotonic() > deadline:
            raise TimeoutError(f"the busy app does not come up: {ids[0]} waits")
        await asyncio.sleep(0.2)


async def _ask(url: str, request: Request) -> bytes:
    connection = await Connection.open(url)
    answer = await connection.ask(request)
    connection.close()
    if answer.status >= 300:
        message = f"{request.data[:80]!r} was answered with {answer.status}: {answer.body[:500]!r}"
        raise RuntimeError(message)
    return answer.body


async def _until_open(url: str) -> None:
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            (await Connection.open(url)).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
        else:
            return


def _within(p50: float | None, p99: float) -> Goal:
    text = f"p99 <= {p99 * 1000:g} ms"
    if p50 is not None:
        text = f"p50 <= {p50 * 1000:g}, {text}"
    return Goal(text=text, is_met=lambda half, most: (p50 is None or half <= p50) and most <= p99)


def _row(name: str, rate: str, run: Run, bare: Run, goal: Goal) -> str:
    half, most = run.latency(0.5), run.latency(0.99)
    verdict = "met" if goal.is_met(half, most) else "**no**"
    if run.is_void:
        verdict = "void: the generator was late"
    if bad := _bad(run):
        verdict = f"**no**: {bad}"
    return (
        f"| {name} | {rate} | {_ms(half)} | {_ms(most)} | {_ms(bare.latency(0.5))}, "
        f"{_ms(bare.latency(0.99))} | {half / bare.latency(0.5):.1f} | {_ms(run.lateness_p99)} | "
        f"{goal.text} | {verdict} |"
    )


def _bad(run: Run) -> str:
    """The answers that are none."""
    bad = {status: n for status, n in run.statuses.items() if status is None or status >= 300}
    return ", ".join(f"{n} x {status or 'no answer'}" for status, n in bad.items())


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _processor() -> str:
    lines: Sequence[str] = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


if __name__ == "__main__":
    main()
