"""A board is sampled while somebody needs it, and only then."""

import threading
import time

import pytest

from tests.waiting import until
from workers.board_sampler import BEFORE, BoardSampler
from workers.energy import Sample


class Board:
    """Its counter counts the looks at it; a second passes from one to the next."""

    def __init__(self) -> None:
        self.looks = -1
        self.looked_from = set[threading.Thread]()

    def sample(self) -> Sample:
        self.looks += 1
        self.looked_from.add(threading.current_thread())
        return Sample(at=float(self.looks), millijoules=self.looks)

    def until_looked(self, times: int) -> None:
        goal = self.looks + times
        until(lambda: self.looks >= goal)


def test_it_samples_while_jobs_run_and_then_stops() -> None:
    board = Board()
    sampler = BoardSampler(board.sample)
    assert not sampler.is_running
    sampler.begin("a", 0.0)
    sampler.begin("b", 0.0)
    board.until_looked(4)
    first = sampler.end("a")
    assert len(first) >= 3
    assert [sample.millijoules for sample in first] == list(range(len(first)))
    assert sampler.is_running
    assert len(sampler.end("b")) >= len(first)
    until(lambda: not sampler.is_running)
    (thread,) = board.looked_from
    thread.join(10)
    assert not thread.is_alive()


def test_it_starts_again_with_nothing_old() -> None:
    board = Board()
    sampler = BoardSampler(board.sample)
    sampler.begin("a", 0.0)
    board.until_looked(2)
    sampler.end("a")
    until(lambda: not sampler.is_running)
    seen = board.looks
    sampler.begin("b", float(seen))
    board.until_looked(2)
    assert sampler.end("b")[0].millijoules == seen + 1
    assert sampler.end("b") == []


def test_what_no_job_needs_any_more_is_forgotten() -> None:
    board = Board()
    sampler = BoardSampler(board.sample)
    sampler.begin("long", 0.0)
    sampler.begin("late", 5.0)
    board.until_looked(8)
    assert sampler.end("long")[0].at == 0.0
    board.until_looked(2)
    assert sampler.end("late")[0].at >= 5.0 - BEFORE


def test_sampling_takes_little_time() -> None:
    """A hundred looks a second: the engine's thread should not notice."""
    board = Board()
    sampler = BoardSampler(board.sample)
    start, cpu = time.monotonic(), time.process_time()
    sampler.begin("a", 0.0)
    board.until_looked(100)
    sampler.end("a")
    assert time.process_time() - cpu < 0.2 * (time.monotonic() - start)


def test_a_look_that_takes_longer_than_a_job_ends_nothing() -> None:
    """Its sample is older than the only job that there is when it comes back."""
    board = Board()
    sampler = BoardSampler(board.sample)
    sampler.begin("late", 10**6)  # the board's clock is far behind it
    board.until_looked(3)
    assert sampler.is_running
    assert sampler.end("late") == []


def test_a_board_that_fails_does_so_for_one_job_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    board, failures = Board(), list[object]()
    monkeypatch.setattr(threading, "excepthook", failures.append)

    def fail() -> Sample:
        raise OSError

    sampler = BoardSampler(fail)
    sampler.begin("a", 0.0)
    until(lambda: not sampler.is_running)
    assert sampler.end("a") == []
    assert len(failures) == 1
    sampler._read = board.sample  # pyright: ignore[reportPrivateUsage] (it is well again)
    sampler.begin("b", 0.0)
    board.until_looked(2)
    assert sampler.end("b")
