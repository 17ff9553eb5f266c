"""The meter that runs beside one job: CPU time and memory, and a GPU's memory and energy."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil

from workers.board_sampler import BoardSampler
from workers.energy import Window, energy_of
from workers.nvml import NvmlDevice

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The fields of ComputeMetrics that a meter knows. GPU fields are None without a GPU."""

    replica_cpu_percent: float
    replica_memory_mb: float
    replica_gpu_memory_allocated_mb: float | None = None
    replica_gpu_memory_reserved_mb: float | None = None
    replica_gpu_memory_total_mb: float | None = None
    replica_gpu_memory_used_mb: float | None = None
    replica_gpu_utilization_percent: float | None = None
    gpu_energy_joules: float | None = None
    energy_quality: str | None = None


class Meter:
    """Runs from its construction to `stop`, or to `close` for a job that is not billed."""

    def __init__(self, device: str) -> None:
        self._process = psutil.Process()
        self._gpu = None if device == "cpu" else _GpuMeter(device)
        self._cpu = self._cpu_seconds()
        self._start = time.monotonic()

    def stop(self, windows: Sequence[Window], *, is_shared: bool) -> Reading:
        """The readings since the start.

        Args:
            windows: when the job's work ran.
            is_shared: whether another job was on the replica meanwhile.
        """
        seconds = max(time.monotonic() - self._start, 1e-6)
        cpu = self._cpu_seconds() - self._cpu
        gpu = self._gpu.stop(windows, is_shared=is_shared) if self._gpu else {}
        return Reading(
            replica_cpu_percent=100 * cpu / seconds,
            replica_memory_mb=self._process.memory_info().rss / MIB,
            **gpu,
        )

    def close(self) -> None:
        """Read nothing more."""
        if self._gpu:
            self._gpu.close()

    def _cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system


class _GpuMeter:
    """The GPU's part: torch's allocator and NVML's board."""

    def __init__(self, device: str) -> None:
        import torch  # only a replica on a GPU comes here, and it has torch loaded

        self._device = torch.device(device)
        self._board = NvmlDevice.of(str(torch.cuda.get_device_properties(self._device).uuid))
        self._sampler = _sampler(self._board) if self._board else None
        if self._sampler:
            self._sampler.begin(self, time.monotonic())

    def stop(self, windows: Sequence[Window], *, is_shared: bool) -> dict[str, Any]:
        import torch

        reading: dict[str, Any] = {
            "replica_gpu_memory_allocated_mb": torch.cuda.memory_allocated(self._device) / MIB,
            "replica_gpu_memory_reserved_mb": torch.cuda.memory_reserved(self._device) / MIB,
        }
        if self._board is None or self._sampler is None:
            return reading
        samples = self._sampler.end(self)
        gauges = self._board.gauges()
        is_shared = is_shared or (self._board.processes() or 1) > 1
        energy = energy_of(windows, samples, is_shared=is_shared)
        return reading | {
            "replica_gpu_memory_total_mb": gauges.memory_total_mb,
            "replica_gpu_memory_used_mb": gauges.memory_used_mb,
            "replica_gpu_utilization_percent": gauges.utilization_percent,
            "gpu_energy_joules": energy and energy.joules,
            "energy_quality": energy and str(energy.quality),
        }

    def close(self) -> None:
        if self._sampler:
            self._sampler.end(self)


@cache
def _sampler(board: NvmlDevice) -> BoardSampler:
    """One for each board, for all jobs of this process."""
    return BoardSampler(board.sample)
