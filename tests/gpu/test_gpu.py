"""What only a GPU shows: pytest -m gpu."""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from sdserve.apps import Precision
from sdserve.checkpoints import inspect_checkpoint
from sdserve.families import SCHEDULERS
from sdserve.jobs import Job, JobStatus
from sdserve.operations import ViewJob
from sdserve.store import RedisJobStore
from tests.judge import obeys
from tests.values import params_for, replica_settings, spec, submit
from tests.waiting import until
from tools.plain_pipeline import load_plainly
from workers.energy import EnergyQuality, Window, energy_of
from workers.loading import load_engine
from workers.metering import Meter
from workers.nvml import NvmlDevice
from workers.puller import Puller
from workers.stopwatch import CudaDevice, Section, Stopwatch

pytestmark = pytest.mark.gpu

DEMO_MODELS = Path(__file__).parent.parent.parent / "demo_models"
DEVICE = "cuda:0"
GPU_FIELDS = (
    "replica_gpu_memory_allocated_mb",
    "replica_gpu_memory_reserved_mb",
    "replica_gpu_memory_total_mb",
    "replica_gpu_memory_used_mb",
    "replica_gpu_utilization_percent",
    "gpu_seconds",
    "gpu_energy_joules",
    "energy_quality",
    "peak_gpu_memory_mb",
    "peak_gpu_memory_reserved_mb",
)


@pytest.mark.parametrize("name", ["tiny-shapes-sd15", "tiny-shapes-sdxl"])
def test_a_gpu_draws_what_the_prompt_says_and_is_metered(name: str) -> None:
    path = DEMO_MODELS / f"{name}.safetensors"
    checkpoint, _ = inspect_checkpoint(path)
    phases = list[str]()
    engine = load_engine(checkpoint, device=DEVICE, threads=1, on_phase=phases.append)
    assert phases[-2:] == ["moving to GPU", "warming"]
    params = params_for(path)
    sections = list[Section]()
    stopwatch = Stopwatch(DEVICE, beside=lambda: 0.0)
    meter = Meter(DEVICE)
    with stopwatch.section(sections.append):
        denoising = engine.begin(params, 0)
    while not denoising.is_done:
        with stopwatch.section(sections.append):
            engine.step([denoising])
    with stopwatch.section(sections.append):
        picture = engine.decode(denoising)
    windows = [Window(start=section.start, end=section.end) for section in sections]
    reading = meter.stop(windows, is_shared=False)
    assert obeys(picture, params.prompt)
    for section in sections:
        assert section.gpu_seconds is not None
        assert 0 < section.gpu_seconds <= section.seconds
        assert section.peak_allocated_mb is not None
        assert section.peak_reserved_mb is not None
        assert 0 < section.peak_allocated_mb <= section.peak_reserved_mb
    assert reading.gpu_energy_joules is not None
    assert reading.gpu_energy_joules > 0
    assert reading.energy_quality in set(EnergyQuality)
    assert reading.replica_gpu_memory_used_mb is not None
    assert reading.replica_gpu_memory_total_mb is not None
    assert reading.replica_gpu_memory_used_mb < reading.replica_gpu_memory_total_mb


@pytest.mark.parametrize("name", ["tiny-shapes-sd15", "tiny-shapes-sdxl"])
def test_an_exact_engine_draws_what_plain_diffusers_draws_on_this_gpu_and_another_nearly(
    name: str,
) -> None:
    import diffusers
    import numpy as np
    import torch

    path = DEMO_MODELS / f"{name}.safetensors"
    checkpoint, _ = inspect_checkpoint(path)
    params = params_for(path)
    drawn = list[Any]()
    for exact in (True, False):
        engine = load_engine(
            checkpoint,
            device=DEVICE,
            threads=1,
            precision=Precision.FLOAT32,
            exact=exact,
            on_phase=lambda _: None,
        )
        assert engine.is_exact is exact
        denoising = engine.begin(params, 0)
        while not denoising.is_done:
            engine.step([denoising])
        drawn.append(engine.decode(denoising).astype(float))
    plain: Any = load_plainly(path).to(DEVICE)
    class_name, options = SCHEDULERS[params.scheduler]
    scheduler: Any = getattr(diffusers, class_name)
    plain.scheduler = scheduler.from_config(plain.scheduler.config, **options)
    expected = plain(
        params.prompt,
        num_inference_steps=params.num_inference_steps,
        guidance_scale=params.guidance_scale,
        width=params.width,
        height=params.height,
        generator=torch.Generator().manual_seed(params.seed),
    ).images[0]
    assert (drawn[0] == np.asarray(expected)).all()
    assert 10 * np.log10(255**2 / np.square(drawn[1] - drawn[0]).mean()) > 30


def test_the_parts_of_jobs_that_share_steps_add_up_to_the_time_the_gpu_was_busy(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = DEMO_MODELS / "tiny-shapes-sd15.safetensors"
    app = spec(checkpoint=inspect_checkpoint(path)[0], num_gpus=1.0, slots=3)
    store = RedisJobStore(redis)
    store.register_app(app)
    busy = list[float]()
    stop = CudaDevice.stop

    def seen(device: CudaDevice) -> dict[str, float]:
        known = stop(device)
        busy.append(known["gpu_seconds"])
        return known

    monkeypatch.setattr(CudaDevice, "stop", seen)
    asked = [
        params_for(path, num_inference_steps=steps, guidance_scale=guidance)
        for steps, guidance in ((20, 5.0), (50, 1.0), (30, 5.0), (40, 7.0), (10, 1.0))
    ]
    ids = [store.run(submit(params=params)).job_id for params in asked]
    puller = Puller(app, replica_settings(redis_url), born=time.monotonic())

    def view(job_id: str) -> Job:
        return store.run(ViewJob(job_id=job_id))

    try:
        until(lambda: all(view(job_id).status.is_final for job_id in ids))
    finally:
        puller.stop(timedelta(0))
    jobs = [view(job_id) for job_id in ids]
    assert {job.status for job in jobs} == {JobStatus.SUCCEEDED}
    bills: list[Any] = [job.metrics for job in jobs]
    assert sum(bill.gpu_seconds for bill in bills) == pytest.approx(sum(busy), rel=0.01)
    for bill in bills:
        for field in GPU_FIELDS:
            assert getattr(bill, field) is not None, field
    assert EnergyQuality.SHARED in {bill.energy_quality for bill in bills}
    used = [job.usage for job in jobs if job.usage]
    assert sum(one.gpu_ms for one in used) == pytest.approx(1000 * sum(busy), rel=0.01, abs=5)
    assert all(one.energy_mj > 0 for one in used)


def test_the_counter_and_its_interpolation_agree_with_power_over_time(
    record_property: Callable[[str, object], None],
) -> None:
    """Ten seconds of matrix products; records (--junit-xml) how often this board ticks."""
    import torch

    board = NvmlDevice.of(str(torch.cuda.get_device_properties(DEVICE).uuid))
    assert board is not None
    size = 8192
    matrix = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)
    samples = [board.sample()]
    begin = time.monotonic()
    while time.monotonic() - begin < 10:
        torch.mm(matrix, matrix)
        torch.cuda.synchronize()
        samples.append(board.sample())
    counted = [sample for sample in samples if sample.millijoules is not None]
    ticks = len({sample.millijoules for sample in counted})
    record_property("ticks_per_second", ticks / 10)
    record_property("samples_per_second", len(samples) / 10)
    whole = energy_of([Window(start=begin, end=begin + 10)], samples, is_shared=False)
    assert whole is not None
    assert whole.quality is EnergyQuality.MEASURED
    blind = [type(sample)(at=sample.at, milliwatts=sample.milliwatts) for sample in samples]
    estimate = energy_of([Window(start=begin, end=begin + 10)], blind, is_shared=False)
    assert estimate is not None
    assert estimate.joules == pytest.approx(whole.joules, rel=0.1)
    # Seconds of it, at any phase of the ticks, are a tenth of it each: the load is even.
    for start in range(2, 8):
        window = Window(start=begin + start + 0.037 * start, end=begin + start + 1 + 0.037 * start)
        second = energy_of([window], samples, is_shared=False)
        assert second is not None
        assert second.joules == pytest.approx(whole.joules / 10, rel=0.05)
