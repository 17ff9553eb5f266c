"""One GPU as NVML sees it: board memory, utilisation, energy. A machine without NVML has none."""

import logging
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import pynvml

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

    def millijoules(self) -> int | None:
        """The board's energy counter (Volta and later); it moves on every 20 to 100 ms."""
        try:
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except pynvml.NVMLError as error:
            log.warning("NVML energy counter: %s", error)
            return None
