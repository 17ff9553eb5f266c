"""What only a GPU shows: pytest -m gpu."""

from pathlib import Path

import pytest

from sdserve.checkpoints import inspect_checkpoint
from tests.judge import obeys
from tests.values import params_for
from workers.loading import load_engine
from workers.metering import Meter

pytestmark = pytest.mark.gpu

DEMO_MODELS = Path(__file__).parent.parent.parent / "demo_models"
DEVICE = "cuda:0"


@pytest.mark.parametrize("name", ["tiny-shapes-sd15", "tiny-shapes-sdxl"])
def test_a_gpu_draws_what_the_prompt_says_and_is_billed(name: str) -> None:
    path = DEMO_MODELS / f"{name}.safetensors"
    checkpoint, _ = inspect_checkpoint(path)
    phases = list[str]()
    engine = load_engine(checkpoint, device=DEVICE, threads=1, on_phase=phases.append)
    assert phases[-2:] == ["moving to GPU", "warming"]
    params = params_for(path)
    meter = Meter(DEVICE, is_shared=False)
    denoising = engine.begin(params, 0)
    while not denoising.is_done:
        engine.step([denoising])
    picture = engine.decode(denoising)
    reading = meter.stop()
    assert obeys(picture, params.prompt)
    for field in (
        "replica_gpu_memory_allocated_mb",
        "replica_gpu_memory_reserved_mb",
        "replica_gpu_memory_total_mb",
        "replica_gpu_memory_used_mb",
        "replica_gpu_utilization_percent",
        "gpu_energy_joules",
        "energy_quality",
        "peak_gpu_memory_mb",
    ):
        assert getattr(reading, field) is not None, field
    assert reading.peak_gpu_memory_mb is not None
    assert reading.replica_gpu_memory_total_mb is not None
    assert 0 < reading.peak_gpu_memory_mb < reading.replica_gpu_memory_total_mb
