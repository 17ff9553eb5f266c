"""The bill on a machine without a GPU: real CPU and memory, and nothing invented."""

from dataclasses import asdict

import pytest

from workers.metering import Meter


def test_a_cpu_job_is_billed_for_its_cpu_and_memory_only() -> None:
    meter = Meter("cpu", is_shared=False)
    total = sum(k * k for k in range(3_000_000))
    reading = meter.stop()
    assert total > 0
    assert reading.cpu_seconds > 0
    assert reading.replica_cpu_percent > 0
    assert reading.replica_memory_mb > 10
    gpu = {k: v for k, v in asdict(reading).items() if "gpu" in k or k == "energy_quality"}
    assert len(gpu) == 8
    assert set(gpu.values()) == {None}


def test_without_nvml_a_gpu_has_no_board_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    from workers.nvml import NvmlDevice

    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert NvmlDevice.of("no-such-uuid") is None
