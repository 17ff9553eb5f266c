"""The meter that runs beside one job: CPU time and memory, and a GPU's memory and energy."""

import time
from dataclasses import dataclass
from typing import Any

import psutil

from workers.nvml import NvmlDevice

MIB = 2**20

# The board's counter is read at both ends of a job and steps every 20 to 100 ms: within a second
# or so of work that is good to a few percent, below it the reading is an interpolation of ours.
MEASURED_FROM = 1.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The fields of ComputeMetrics that a meter knows. GPU fields are None without a GPU."""

    replica_cpu_percent: float
    replica_memory_mb: float
    cpu_seconds: float
    replica_gpu_memory_allocated_mb: float | None = None
    replica_gpu_memory_reserved_mb: float | None = None
    replica_gpu_memory_total_mb: float | None = None
    replica_gpu_memory_used_mb: float | None = None
    replica_gpu_utilization_percent: float | None = None
    gpu_energy_joules: float | None = None
    energy_quality: str | None = None
    peak_gpu_memory_mb: float | None = None


class Meter:
    """Runs from its construction to `stop`; jobs that overlap on a replica share what it reads."""

    def __init__(self, device: str, *, is_shared: bool) -> None:
        self._process = psutil.Process()
        self._is_shared = is_shared
        self._gpu = None if device == "cpu" else _GpuMeter(device)
        self._cpu = self._cpu_seconds()
        self._start = time.monotonic()

    def stop(self) -> Reading:
        """The readings since the start."""
        seconds = max(time.monotonic() - self._start, 1e-6)
        cpu = self._cpu_seconds() - self._cpu
        gpu = self._gpu.stop(seconds, is_shared=self._is_shared) if self._gpu else {}
        return Reading(
            replica_cpu_percent=100 * cpu / seconds,
            replica_memory_mb=self._process.memory_info().rss / MIB,
            cpu_seconds=cpu,
            **gpu,
        )

    def _cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system


class _GpuMeter:
    """The GPU's part: torch's allocator and NVML's board."""

    def __init__(self, device: str) -> None:
        import torch  # only a replica on a GPU comes here, and it has torch loaded

        self._device = torch.device(device)
        self._board = NvmlDevice.of(str(torch.cuda.get_device_properties(self._device).uuid))
        torch.cuda.reset_peak_memory_stats(self._device)
        self._millijoules = self._board.millijoules() if self._board else None

    def stop(self, seconds: float, *, is_shared: bool) -> dict[str, Any]:
        import torch

        reading: dict[str, Any] = {
            "replica_gpu_memory_allocated_mb": torch.cuda.memory_allocated(self._device) / MIB,
            "replica_gpu_memory_reserved_mb": torch.cuda.memory_reserved(self._device) / MIB,
            "peak_gpu_memory_mb": torch.cuda.max_memory_allocated(self._device) / MIB,
        }
        if self._board is None:
            return reading
        gauges = self._board.gauges()
        reading |= {
            "replica_gpu_memory_total_mb": gauges.memory_total_mb,
            "replica_gpu_memory_used_mb": gauges.memory_used_mb,
            "replica_gpu_utilization_percent": gauges.utilization_percent,
        }
        end = self._board.millijoules()
        if end is not None and self._millijoules is not None:
            reading["gpu_energy_joules"] = (end - self._millijoules) / 1000
            exact = "measured" if seconds >= MEASURED_FROM else "estimated"
            reading["energy_quality"] = "shared" if is_shared else exact
        return reading
