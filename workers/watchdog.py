"""Notices that the engine thread hangs: on a GPU that is silent, on a dead mount."""

import faulthandler
import threading
import time
from collections.abc import Callable

INTERVAL = 0.5  # seconds between looks
LAST_WORDS = 10.0  # seconds that a process may take to say goodbye, then it ends without
STDERR = 2  # sys.stderr may be no file
# By how many seconds the process's own end may be off: to set it anew ends a thread and starts one.
SLACK = 1.0


class Watchdog:
    """Calls `on_hang` once when a part of the work outlasts its limit.

    Where even Python stands still (the thread hangs and holds the interpreter's lock) nobody can be
    called: then the process ends by itself, LAST_WORDS later.
    """

    def __init__(self, on_hang: Callable[[str], None]) -> None:
        self._on_hang = on_hang
        # (end, what, limit): one value, replaced as a whole, needs no lock.
        self._expected: tuple[float, str, float] | None = None
        self._end = 0.0  # for which the process's own end is set
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def expect(self, what: str, limit: float) -> None:
        """The engine thread moves on to `what`, and again within `limit` seconds."""
        if self._stopped.is_set():
            return
        end = time.monotonic() + limit
        self._expected = end, what, limit
        if abs(end - self._end) > SLACK:
            self._end = end
            end_process_in(limit + LAST_WORDS)

    def stop(self) -> None:
        """Nothing is expected any more."""
        self._stopped.set()
        spare_process()

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL):
            expected = self._expected
            if expected and time.monotonic() > expected[0]:
                faulthandler.dump_traceback(STDERR)  # where it hangs
                self._on_hang(f"{expected[1]} has not ended within {expected[2]:g} s.")
                return


def end_process_in(seconds: float) -> None:
    """End this process, with a traceback on stderr, unless it is spared or given a new time.

    A thread of faulthandler's does it, which needs nothing of Python's.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=STDERR)


def spare_process() -> None:
    """Take back `end_process_in`."""
    faulthandler.cancel_dump_traceback_later()
