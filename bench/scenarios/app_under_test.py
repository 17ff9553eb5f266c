"""The app that the scenarios load, and what they ask of it again and again."""

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bench.connection import Request
from bench.open_loop import Run, fire, poisson, saturate
from bench.own_stack import OwnStack
from bench.statistics import tail
from sdserve.redis_server import find_redis
from sdserve.settings import Settings
from sdserve.store import RedisJobStore, connect

PATIENCE = 240.0  # seconds for anything that must happen
SLO = 3.0  # times the latency of a client alone
BURST = 200
IDLE_TIMEOUT = 5  # seconds until the app scales to zero
CLIENTS = 4  # of a saturated app
ALONE, ALONE_INTERVAL = 20, 0.5  # requests, seconds between two
SHORT = {"prompt": "a red circle on a blue background", "num_inference_steps": 4, "seed": 1}
LATER = {"Prefer": "respond-async"}
Rows = list[list[str]]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What the app does on this machine at this moment."""

    alone: float  # seconds of a request, the median of one client
    capacity: float  # pictures per second

    def __str__(self) -> str:
        return f"{self.alone:.3f} s alone, {self.capacity:.1f}/s saturated"

    def goodput(self, run: Run) -> str:
        """The share of requests that had their picture within the SLO."""
        good = sum(
            shot.status == 200 and shot.done - shot.due <= SLO * self.alone for shot in run.shots
        )
        return (
            f"within {SLO:.0f}x of alone {good} of {len(run.shots)} ({good / len(run.shots):.0%})"
        )


class AppUnderTest:
    """One app of a running stack."""

    def __init__(self, stack: OwnStack, *, seconds: float, deep: int) -> None:
        """Of `stack`; an open-loop run takes `seconds`, a deep queue has `deep` jobs."""
        self.stack = stack
        self.seconds = seconds
        self.deep = deep
        self.http = httpx.AsyncClient(
            base_url=stack.url, timeout=PATIENCE, trust_env=False,
            limits=httpx.Limits(max_connections=BURST),
        )  # fmt: skip
        # One that is held until its picture is there.
        self.request = Request.make(
            "POST", f"/{stack.app}/v1/generate", body=json.dumps(SHORT).encode(),
            headers=("Accept: image/png", "Prefer: wait=60"),
        )  # fmt: skip

    @property
    def redis_url(self) -> str:
        """Of the stack's Redis."""
        state = Path(self.stack.environment["SD_STATE_DIR"])
        redis_url = find_redis(Settings(state_dir=state))
        if redis_url is None:
            raise RuntimeError("the stack's Redis is not found")
        return redis_url

    def store(self) -> RedisJobStore:
        """The job store of the stack."""
        return RedisJobStore(connect(self.redis_url))

    async def pace(self) -> Pace:
        """Bring a replica up, and measure what it does."""
        await self.ended((await self.submit())[0])
        return Pace(
            alone=statistics.median(await self.alone()),
            capacity=await saturate(
                self.stack.url, self.request, connections=CLIENTS, seconds=self.seconds / 2
            ),
        )

    async def alone(self) -> list[float]:
        """Seconds of each request of a single warm client."""
        times = [ALONE_INTERVAL * number for number in range(ALONE)]
        run = await fire(self.stack.url, times, [self.request])
        return [shot.done - shot.due for shot in run.shots]

    async def fire(self, rate: float) -> Run:
        """Independent users, `rate` requests a second."""
        times = poisson(rate, self.seconds, seed=1)
        return await fire(self.stack.url, times, [self.request])

    async def submit(
        self, body: dict[str, Any] = SHORT, *, app: str | None = None, token: str | None = None
    ) -> tuple[str, float]:
        """The id of a job, and the seconds until it was known."""
        headers = LATER | _shown(token)
        route = f"/{app or self.stack.app}/v1/generate"
        begin = time.perf_counter()
        answer = await self.http.post(route, json=body, headers=headers)
        if answer.status_code != 202:
            raise RuntimeError(f"not accepted: {answer.status_code} {answer.text[:500]}")
        return answer.json()["id"], time.perf_counter() - begin

    async def ended(self, job_id: str, *, token: str | None = None) -> dict[str, Any]:
        """The job, once it is final."""
        while True:
            answer = await self.http.get(
                f"/v1/jobs/{job_id}", params={"wait": 30}, headers=_shown(token)
            )
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


def latencies(seconds: Sequence[float]) -> str:
    """The median and the tail, in words."""
    if not seconds:
        return "none"
    name, slow = tail(seconds)
    return f"p50 {statistics.median(seconds):.3f} s, {name} {slow:.3f} s"


def latencies_of(run: Run) -> str:
    """The same of a run, with how late the generator was."""
    seconds = [shot.done - shot.due for shot in run.shots]
    return f"{latencies(seconds)} (generator late, p99 {run.lateness_p99 * 1000:.0f} ms)"


def _shown(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}
