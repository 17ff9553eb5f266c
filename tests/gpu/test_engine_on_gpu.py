"""The engine on a GPU: plain diffusers' pixels, too little memory, compiled, in a fork."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.drawing import draw
from bench.gpu import equality
from bench.gpu.plan import Plan
from bench.gpu.subject import Subject
from bench.gpu.zygote import zygote
from sdserve.apps import Precision
from sdserve.checkpoints import inspect_checkpoint
from tests.judge import obeys
from tests.values import params_for
from tools.make_checkpoint import make_checkpoint
from workers.loading import load_engine

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

DEVICE = "cuda:0"
DEMO_MODEL = Path(__file__).parents[2] / "demo_models" / "tiny-shapes-sdxl.safetensors"
COMPILE_LIMIT = 300.0  # seconds


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def subject(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    """Full size, random bfloat16 weights, few steps."""
    kind: str = request.param
    path: Path = tmp_path_factory.mktemp(kind) / f"{kind}.safetensors"
    make_checkpoint(path, kind, size="full", dtype="bf16")
    plan = replace(Plan.here(size="full", is_smallest=True), steps=4)
    assert plan.precision is Precision.BFLOAT16
    yield Subject(plan=plan, kind=kind, path=path)
    path.unlink()


def test_full_size_draws_every_pixel_as_plain_diffusers_does(subject: Subject) -> None:
    found = equality.measure(subject)
    assert found.samples["pixels"] == 0
    assert found.samples["deviation"] > 1  # of 255: a picture, not one colour
    assert found.samples["together"] < 0.05  # in bfloat16


def test_a_picture_that_does_not_fit_whole_is_decoded_tile_by_tile(subject: Subject) -> None:
    engine = subject.engine
    whole = draw(engine, subject.request(0)).astype(int)
    denoising = engine.begin(subject.request(0), 0)
    while not denoising.is_done:
        engine.step([denoising])
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(DEVICE)
    held = torch.cuda.memory_allocated(DEVICE)
    engine.decode(denoising)
    needed = torch.cuda.max_memory_allocated(DEVICE) - held
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    reserved = torch.cuda.memory_reserved(DEVICE)
    # The fraction bounds what torch's allocator reserves.
    torch.cuda.set_per_process_memory_fraction((reserved + 0.6 * needed) / total, DEVICE)
    try:
        tiled = engine.decode(denoising).astype(int)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)
    assert tiled.shape == whole.shape
    assert float(np.abs(tiled - whole).max()) > 0  # else it was not tiled
    assert np.array_equal(engine.decode(denoising), whole)  # the next one is whole again


def test_a_compiled_network_takes_over_and_draws_what_the_prompt_says() -> None:
    checkpoint, _ = inspect_checkpoint(DEMO_MODEL)
    engine = load_engine(checkpoint, device=DEVICE, threads=1, compiles=True, on_phase=print)
    params = params_for(DEMO_MODEL)
    assert obeys(draw(engine, params), params.prompt)  # at once, by the network as it is
    deadline = time.monotonic() + COMPILE_LIMIT
    while engine.compiled == 0:
        assert time.monotonic() < deadline, "not compiled: the log says why"
        time.sleep(0.1)
    assert obeys(draw(engine, params), params.prompt)


def test_a_child_of_the_standby_process_has_the_gpu_again_and_again() -> None:
    with zygote(threads=1) as standby:
        assert standby.ready["has_context"] == 0  # with one, no child could use the GPU
        for _ in range(2):
            assert standby.first_operation(DEVICE)["value"] == 8
