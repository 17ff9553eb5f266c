"""What the engine's thread did is told whole, also when it failed, and split without a rest."""

import threading
import time

import pytest

from tests.waiting import LIMIT
from workers.stopwatch import Section, Stopwatch, ThreadClock, shares


def spin(seconds: float) -> None:
    """Use so much CPU time of this thread."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_shares_are_by_rows_and_leave_no_rest() -> None:
    assert shares([2]) == [1]
    assert shares([2, 1, 1]) == [0.5, 0.25, 0.25]
    assert sum(shares([2, 1, 2, 2])) == pytest.approx(1, abs=1e-12)


def test_a_section_on_a_cpu_has_its_times_and_no_gpu() -> None:
    sections = list[Section]()
    with Stopwatch("cpu", beside=lambda: 0.0).section(sections.append):
        spin(0.05)
    (section,) = sections
    assert section.seconds >= 0.05
    assert section.cpu_seconds >= 0.05
    assert section.gpu_seconds is section.peak_allocated_mb is section.peak_reserved_mb is None


def test_a_section_that_fails_has_taken_its_time_too() -> None:
    sections = list[Section]()

    def fail() -> None:
        with Stopwatch("cpu", beside=lambda: 0.0).section(sections.append):
            spin(0.02)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert sections[0].cpu_seconds >= 0.02


def test_what_another_thread_did_meanwhile_is_another_jobs() -> None:
    clock, started, stop = ThreadClock(), threading.Event(), threading.Event()
    assert clock.seconds() == 0

    def work() -> None:
        clock.start()
        started.set()
        while not stop.is_set():
            spin(0.005)

    other = threading.Thread(target=work)
    other.start()
    assert started.wait(LIMIT)
    sections = list[Section]()
    before, own = clock.seconds(), time.thread_time()
    with Stopwatch("cpu", beside=clock.seconds).section(sections.append):
        spin(0.2)
    own = time.thread_time() - own
    beside = clock.seconds() - before
    stop.set()
    other.join()
    assert beside > 0.05
    assert sections[0].cpu_seconds == pytest.approx(own, abs=0.3 * beside)
    assert clock.seconds() >= before + beside  # of a thread that has ended, the last reading
