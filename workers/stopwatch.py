"""How long a section of the engine thread's work took: by the clock, of the CPU and of the GPU.

One section runs at a time, on one stream, so what sections tell adds up to the time that the device
was busy. A section of several jobs is split by `shares`.
"""

import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Section:
    """One call of the engine: encoding a prompt, one step of a batch, decoding a picture."""

    start: float  # monotonic seconds
    end: float
    cpu_seconds: float  # of all threads of the process but the finisher's
    gpu_seconds: float | None = None  # between two events on the stream; None on a CPU
    peak_allocated_mb: float | None = None  # of torch's allocator, while it ran
    peak_reserved_mb: float | None = None

    @property
    def seconds(self) -> float:
        return self.end - self.start


def shares(rows: Sequence[int]) -> list[float]:
    """The parts of a section that belong to the jobs of its batch, by their rows; their sum is 1.

    Args:
        rows: of the network's batch, for each job: 2 with guidance, 1 without.
    """
    total = sum(rows)
    return [count / total for count in rows]


class Device(Protocol):
    """The device's part of a stopwatch."""

    def start(self) -> None: ...

    def stop(self) -> dict[str, float]:
        """Wait until all work since `start` is done. Answers the fields of Section it knows."""
        ...


class Stopwatch:
    """Times the sections of one thread."""

    def __init__(self, device: str, *, beside: Callable[[], float]) -> None:
        """Be ready.

        Args:
            device: as torch names it.
            beside: CPU seconds so far of the threads that do work of other jobs meanwhile.
        """
        self._device: Device = _Host() if device == "cpu" else CudaDevice(device)
        self._beside = beside

    @contextmanager
    def section(self, done: Callable[[Section], None]) -> Generator[None]:
        """Time the block, also one that fails; `done` gets the section.

        The device has done the work when the block is left, not only been told to: progress and
        the bill tell what is.
        """
        start, cpu = time.monotonic(), self._cpu_seconds()
        self._device.start()
        try:
            yield
        finally:
            known = self._device.stop()
            cpu = max(0.0, self._cpu_seconds() - cpu)
            done(Section(start=start, end=time.monotonic(), cpu_seconds=cpu, **known))

    def _cpu_seconds(self) -> float:
        # Not psutil's, which counts in ticks of 10 ms: a step may be shorter.
        return time.process_time() - self._beside()


class ThreadClock:
    """The CPU time of one thread, for others to read."""

    def __init__(self) -> None:
        self._clock: int | None = None
        self._seconds = 0.0

    def start(self) -> None:
        """Called in the thread itself."""
        if sys.platform == "linux":  # elsewhere its time is counted with the others'
            self._clock = time.pthread_getcpuclockid(threading.get_ident())

    def seconds(self) -> float:
        """So far; 0 before the thread began, and for one that has ended what was read last."""
        if self._clock is not None:
            try:
                self._seconds = time.clock_gettime(self._clock)
            except OSError:  # it has ended
                self._clock = None
        return self._seconds


class _Host:
    """A CPU is done when the call returns."""

    def start(self) -> None: ...

    def stop(self) -> dict[str, float]:
        return {}


class CudaDevice:
    """Two events on the current stream, and the allocator's peaks between them."""

    def __init__(self, device: str) -> None:
        import torch  # only a replica on a GPU comes here, and it has torch loaded

        self._torch: Any = torch
        self._name = torch.device(device)
        self._begin = torch.cuda.Event(enable_timing=True)
        # A blocking event: the thread sleeps until it comes, where a synchronize would spin.
        self._end = torch.cuda.Event(enable_timing=True, blocking=True)

    def start(self) -> None:
        cuda = self._torch.cuda
        cuda.reset_peak_memory_stats(self._name)
        self._begin.record(cuda.current_stream(self._name))

    def stop(self) -> dict[str, float]:
        cuda = self._torch.cuda
        self._end.record(cuda.current_stream(self._name))
        self._end.synchronize()
        return {
            "gpu_seconds": self._begin.elapsed_time(self._end) / 1000,
            "peak_allocated_mb": cuda.max_memory_allocated(self._name) / MIB,
            "peak_reserved_mb": cuda.max_memory_reserved(self._name) / MIB,
        }
