"""The load generator: its schedule, what it counts as latency, and when it is void."""

import asyncio
import statistics

import pytest

from bench.connection import Request
from bench.open_loop import Run, Shot, fire, poisson, saturate

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
GET = Request.make("GET", "/")


class Clerk:
    """A server that answers everything, one after the other; `stalls` says how long each takes."""

    def __init__(self, stalls: dict[int, float] | None = None, answer: bytes = OK) -> None:
        self._stalls = stalls or {}
        self._answer = answer
        self._count = 0
        self._desk = asyncio.Lock()
        self._clients = set[asyncio.Task[None]]()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"http://{host}:{port}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await asyncio.gather(*self._clients)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        while await reader.readline():
            while (await reader.readline()).strip():
                pass
            async with self._desk:
                self._count += 1
                await asyncio.sleep(self._stalls.get(self._count, 0))
            writer.write(self._answer)
        writer.close()
        await writer.wait_closed()


def test_the_schedule_is_a_poisson_process_of_its_seed() -> None:
    times = poisson(100, 200, seed=1)
    assert times == poisson(100, 200, seed=1) != poisson(100, 200, seed=2)
    assert times == sorted(times)
    assert times[-1] < 200
    gaps = [after - before for before, after in zip([0, *times], times, strict=False)]
    # Exponential: the deviation is the mean.
    assert statistics.fmean(gaps) == pytest.approx(0.01, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(0.01, rel=0.05)


async def test_a_stall_delays_all_that_should_have_come_meanwhile() -> None:
    times = [number * 0.01 for number in range(100)]
    async with Clerk({10: 0.5}) as url:
        run = await fire(url, times, [GET])
    assert run.statuses == {200: 100}
    # Half of all were due while it stood still: a closed loop would have sent one.
    slow = [shot for shot in run.shots if shot.done - shot.due > 0.1]
    assert len(slow) >= 30
    assert run.latency(0.99) >= 0.45
    assert run.latency(0.05) < 0.1
    assert run.lateness_p99 < 0.1  # the generator went on meanwhile


async def test_what_was_not_answered_is_slower_than_any_answer() -> None:
    async with Clerk() as url:
        pass  # nobody listens there any more
    run = await fire(url, [0.0, 0.01], [GET])
    assert run.statuses == {None: 2}
    assert run.latency(0.5) == float("inf")


def shots(count: int, *, late: float, latency: float) -> Run:
    made = [
        Shot(due=number, sent=number + late, done=number + latency, status=200)
        for number in range(count)
    ]
    return Run(shots=made, seconds=count)


def test_a_run_is_void_when_the_generator_was_late_or_there_is_too_little() -> None:
    assert not shots(1000, late=0.001, latency=0.01).is_void
    assert shots(1000, late=0.005, latency=0.01).is_void
    assert shots(999, late=0.001, latency=0.01).is_void


async def test_capacity_of_errors_is_none() -> None:
    async with Clerk() as url:
        assert await saturate(url, GET, connections=2, seconds=0.2) > 10
    async with Clerk(answer=b"HTTP/1.1 404 N\r\nContent-Length: 0\r\n\r\n") as url:
        with pytest.raises(RuntimeError, match="404"):
            await saturate(url, GET, connections=2, seconds=0.2)
