"""The bill on a machine without a GPU: real CPU and memory, and nothing invented."""

from dataclasses import asdict

import pytest

from workers.energy import Window
from workers.metering import Meter


def test_a_cpu_job_is_billed_for_its_cpu_and_memory_only() -> None:
    meter = Meter("cpu")
    total = sum(k * k for k in range(3_000_000))
    reading = meter.stop([Window(start=1, end=2)], is_shared=False)
    assert total > 0
    assert reading.replica_cpu_percent > 0
    assert reading.replica_memory_mb > 10
    gpu = {k: v for k, v in asdict(reading).items() if "gpu" in k or k == "energy_quality"}
    assert len(gpu) == 7
    assert set(gpu.values()) == {None}


def test_without_nvml_a_gpu_has_no_board_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    from workers.nvml import NvmlDevice

    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert NvmlDevice.of("no-such-uuid") is None


def test_what_a_board_does_not_tell_is_asked_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import pynvml

    from workers.nvml import NvmlDevice

    asked = list[object]()

    def refuse(handle: object) -> int:
        asked.append(handle)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def tell(_handle: object) -> int:
        return 61_000

    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", refuse)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", tell)
    board = NvmlDevice("handle")
    samples = [board.sample() for _ in range(3)]
    assert [(sample.millijoules, sample.milliwatts) for sample in samples] == [(None, 61_000)] * 3
    assert asked == ["handle"]
    assert len(caplog.records) == 1
