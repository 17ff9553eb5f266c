"""Load as users make it: requests come when they come, whether or not the last one was answered.

The schedule is fixed before the run, and a latency counts from the moment at which its request was
to be sent: a server that stands still delays all that should have come meanwhile, and a generator
that waits for it would not see that. The generator tells how late it was itself; where that is not
small beside the latencies, the run says nothing and is void.
"""

import asyncio
import gc
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from bench.connection import Answer, Connection, Request
from bench.statistics import P99_SAMPLES, quantile

PATIENCE = 30.0  # seconds after the last request for the last answer
SMALL = 0.25  # of the 99th percentile of the latencies: that of the generator's own lateness


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One request of the schedule and what came of it. Times are seconds from the run's start."""

    due: float
    sent: float
    done: float
    status: int | None  # None: the connection was lost, or no answer came


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a schedule came to."""

    shots: list[Shot]
    seconds: float

    @property
    def statuses(self) -> Counter[int | None]:
        return Counter(shot.status for shot in self.shots)

    @property
    def lateness_p99(self) -> float:
        """Seconds by which the generator was late."""
        return quantile([shot.sent - shot.due for shot in self.shots], 0.99)

    def latency(self, share: float) -> float:
        """Seconds from when a request was due to its answer; infinite where none came."""
        return quantile(
            [math.inf if shot.status is None else shot.done - shot.due for shot in self.shots],
            share,
        )

    @property
    def is_void(self) -> bool:
        """The generator was too slow, or there are too few requests, for its 99th percentile."""
        return len(self.shots) < P99_SAMPLES or self.lateness_p99 > SMALL * self.latency(0.99)


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """When independent users ask, `rate` times a second on average."""
    random, at, times = Random(seed), 0.0, list[float]()
    while (at := at + random.expovariate(rate)) < seconds:
        times.append(at)
    return times


async def fire(url: str, times: Sequence[float], requests: Sequence[Request]) -> Run:
    """Send each request at its time, in order; `requests` begins again when it is used up.

    A request takes a connection that is free, or a new one: so there are as many as a server's
    delay makes necessary.
    """
    free = list[Connection]()
    shots = list[Shot]()
    start = 0.0

    def now() -> float:
        return time.perf_counter() - start

    async def shoot(due: float, request: Request) -> None:
        sent, status = now(), None
        try:
            while free and not free[-1].is_open:
                free.pop()
            connection = free.pop() if free else await Connection.open(url)
            status = (await connection.ask(request)).status
            free.append(connection)
        except OSError:  # counts as unanswered
            pass
        finally:
            shots.append(Shot(due=due, sent=sent, done=now(), status=status))

    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        tasks = set[asyncio.Task[None]]()
        for number, due in enumerate(times):
            if (pause := due - now()) > 0:
                await asyncio.sleep(pause)
            task = asyncio.create_task(shoot(due, requests[number % len(requests)]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=PATIENCE)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        seconds = now()
    finally:
        gc.enable()
        for connection in free:
            connection.close()
    return Run(shots=shots, seconds=seconds)


async def saturate(url: str, request: Request, *, connections: int, seconds: float) -> float:
    """Answers a second when each of `connections` asks again as soon as it is answered.

    For capacity alone: latencies of a closed loop mean nothing.

    Raises:
        RuntimeError: an answer was not a success.
    """
    end = time.perf_counter() + seconds
    counts = Counter[int]()

    async def ask() -> None:
        connection = await Connection.open(url)
        while time.perf_counter() < end:
            answer: Answer = await connection.ask(request)
            counts[answer.status] += 1
        connection.close()

    start = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(ask())
    if bad := [status for status in counts if status >= 300]:
        message = f"{bad} among {counts}: that measures errors"
        raise RuntimeError(message)
    return counts.total() / (time.perf_counter() - start)
