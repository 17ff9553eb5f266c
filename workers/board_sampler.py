"""Samples a GPU's board every 10 ms, from a thread of its own that runs only while jobs do."""

import threading
from collections import deque
from collections.abc import Callable

from workers.energy import Sample

INTERVAL = 0.01  # seconds: a tick's time is known to that
BEFORE = 0.3  # seconds of samples kept from before the oldest job: its first tick may lie there
MOST = 120_000  # samples, of 20 minutes: a longer job's beginning is taken to be as its rest


class BoardSampler:
    """Samples for jobs that overlap as they like."""

    def __init__(self, read: Callable[[], Sample]) -> None:
        self._read = read
        self._samples = deque[Sample](maxlen=MOST)
        self._began = dict[object, float]()  # who needs samples -> since when
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def is_running(self) -> bool:
        with self._lock:
            return self._thread is not None

    def begin(self, holder: object, now: float) -> None:
        """Sample from now on, for `holder`.

        Args:
            holder: hashable.
            now: monotonic seconds.
        """
        with self._lock:
            self._began[holder] = now
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="board", daemon=True)
                self._thread.start()

    def end(self, holder: object) -> list[Sample]:
        """What was sampled for `holder`, who needs no more; nothing the second time."""
        with self._lock:
            if self._began.pop(holder, None) is None:
                return []
            return list(self._samples)

    def _run(self) -> None:
        try:
            self._sample()
        finally:
            with self._lock:  # whatever it was, the next job finds no dead thread
                if self._thread is threading.current_thread():
                    self._thread = None

    def _sample(self) -> None:
        pause = threading.Event()
        while True:
            sample = self._read()
            with self._lock:
                if not self._began:
                    self._samples.clear()
                    self._thread = None
                    return
                self._samples.append(sample)
                oldest = min(self._began.values()) - BEFORE
                # A read that took long may itself be older than a job that began meanwhile.
                while self._samples and self._samples[0].at < oldest:
                    self._samples.popleft()
            pause.wait(INTERVAL)
