"""The watchdog: a part of the work that outlasts its limit is noticed, whatever it hangs in."""

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.waiting import LIMIT, until
from workers.watchdog import Watchdog


class Hangs(list[str]):
    """What a watchdog said."""


@pytest.fixture
def hangs() -> Hangs:
    return Hangs()


@pytest.fixture
def watchdog(hangs: Hangs) -> Iterator[Watchdog]:
    one = Watchdog(hangs.append)
    one.start()
    yield one
    one.stop()


def test_it_says_once_what_did_not_end(watchdog: Watchdog, hangs: Hangs) -> None:
    watchdog.expect("A step", 0.2)
    until(lambda: hangs)
    assert hangs == ["A step has not ended within 0.2 s."]


def test_work_that_moves_on_is_left_alone(watchdog: Watchdog, hangs: Hangs) -> None:
    watchdog.expect("A step", 0.2)
    watchdog.expect("The next one", 1000)
    assert not threading.Event().wait(2)  # several looks
    assert hangs == []


def test_when_stopped_it_expects_nothing(watchdog: Watchdog, hangs: Hangs) -> None:
    watchdog.expect("A step", 0.2)
    watchdog.stop()
    assert not threading.Event().wait(1)
    assert hangs == []


def test_a_process_in_which_python_stands_still_ends_too() -> None:
    # PyDLL keeps the interpreter's lock during the call.
    code = (
        "import ctypes; from workers import watchdog; watchdog.LAST_WORDS = 0.5\n"
        "dog = watchdog.Watchdog(print); dog.start(); dog.expect('A step', 0.5)\n"
        "ctypes.PyDLL(None).sleep(1000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=LIMIT
    )
    assert done.returncode == 1
    assert 'File "<string>", line 3' in done.stderr  # where it hung
    assert done.stdout == ""
