"""One GPU as NVML sees it: board memory, utilisation, energy. A machine without NVML has none."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import pynvml

from workers.energy import Sample

log = logging.getLogger(__name__)

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Gauges:
    """The board at one moment; None where the driver does not tell."""

    memory_total_mb: float | None = None
    memory_used_mb: float | None = None  # by all processes
    utilization_percent: float | None = None  # the driver's average of the last second


class NvmlDevice:
    """A handle of the NVML library (nvidia-ml-py)."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._untold = set[str]()  # what this board does not tell

    @classmethod
    @cache
    def of(cls, uuid: str) -> Self | None:
        """The GPU with this UUID, as torch tells it; None, and one log line, without NVML.

        By UUID because indices differ: CUDA numbers what CUDA_VISIBLE_DEVICES leaves, NVML all.
        """
        try:
            pynvml.nvmlInit()
            return cls(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
        except pynvml.NVMLError as error:
            log.warning("no NVML figures for GPU %s: %s", uuid, error)
            return None

    def gauges(self) -> Gauges:
        try:
            memory: Any = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
            rates = pynvml.nvmlDeviceGetUtilizationRates(self._handle)
        except pynvml.NVMLError as error:
            log.warning("NVML gauges: %s", error)
            return Gauges()
        return Gauges(
            memory_total_mb=memory.total / MIB,
            memory_used_mb=memory.used / MIB,
            utilization_percent=float(rates.gpu),
        )

    def processes(self) -> int | None:
        """How many processes compute on it."""
        return self._ask("processes", _count_processes)

    def sample(self) -> Sample:
        """The board's energy counter (Volta and later) and its power, now."""
        return Sample(
            at=time.monotonic(),
            millijoules=self._ask("energy counter", pynvml.nvmlDeviceGetTotalEnergyConsumption),
            milliwatts=self._ask("power", pynvml.nvmlDeviceGetPowerUsage),
        )

    def _ask(self, what: str, call: Callable[[Any], Any]) -> int | None:
        if what in self._untold:
            return None
        try:
            return int(call(self._handle))
        except pynvml.NVMLError as error:
            log.warning("NVML %s: %s", what, error)
            self._untold.add(what)  # a hundred times a second is often enough to be told once
            return None


def _count_processes(handle: Any) -> int:
    processes: Any = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return len(processes)
