"""The layout for a GPU computes the same but for rounding. On a CPU it is only tested, not used."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sdserve.checkpoints import inspect_checkpoint
from sdserve.generation import GenerationParams
from tests.drawing import load
from tests.values import params_for
from tools.make_checkpoint import make_checkpoint
from workers.assembly import Assembly
from workers.compiling import CompiledNetwork
from workers.denoising import Denoising
from workers.engine import DiffusionEngine
from workers.fast_layout import lay_out

pytestmark = pytest.mark.integration

# Of latents, relative: sums in another order, which every step of the sampler carries on. What was
# seen is 1.5e-5.
ROUNDING = 1e-4
DEMO_MODELS = Path(__file__).parents[2] / "demo_models"


def pipeline_of(engine: DiffusionEngine) -> Any:
    return vars(engine)["_pipeline"]


def denoise(engine: DiffusionEngine, asked: GenerationParams) -> Denoising:
    denoising = engine.begin(asked, 0)
    while not denoising.is_done:
        engine.step([denoising])
    return denoising


def count(part: Any) -> int:
    return sum(weight.numel() for weight in part.parameters())


@pytest.mark.parametrize("kind", ["sd1", "sd1-inpainting", "sd2-v", "sdxl", "sd35-medium"])
def test_it_draws_the_same_picture_within_rounding(tmp_path: Path, kind: str) -> None:
    path = make_checkpoint(tmp_path / f"{kind}.safetensors", kind)
    plain, fast = load(path), load(path)
    pipeline = pipeline_of(fast)
    network = pipeline.transformer if kind.startswith("sd3") else pipeline.unet
    sizes = count(network), count(pipeline.vae)
    lay_out(pipeline)
    assert (count(network), count(pipeline.vae)) == sizes  # nothing is kept twice
    asked = params_for(path, num_inference_steps=3)
    one, other = plain.begin(asked, 0), fast.begin(asked, 0)
    # An empty picture is constant, out of which a VAE's first norms make anything: a change of 1e-7
    # makes 5 % there (of random weights).
    other.canvas = one.canvas
    while not one.is_done:
        plain.step([one])
        fast.step([other])
    assert (one.latents - other.latents).abs().max() / one.latents.abs().max() < ROUNDING
    assert abs(plain.decode(one).astype(int) - fast.decode(other)).max() <= 1


@pytest.mark.parametrize("name", ["tiny-shapes-sd15", "tiny-shapes-sdxl"])
def test_a_unet_laid_out_so_is_compiled_and_step_cached_like_any(name: str) -> None:
    path = DEMO_MODELS / f"{name}.safetensors"
    plain, fast = load(path), load(path)
    lay_out(pipeline_of(fast))
    fast.compile(backend="aot_eager")
    network = vars(vars(fast)["_denoiser"])["network"]
    assert isinstance(network, CompiledNetwork)
    asked = params_for(path, num_inference_steps=4, width=64, height=64, scheduler="euler")
    expected = denoise(plain, asked).latents
    for _ in range(2):
        drawn = denoise(fast, asked).latents
        assert (drawn - expected).abs().max() / expected.abs().max() < ROUNDING
        network.wait()
        assert fast.compiled == 1  # one kind of arguments, whatever strides the latents have
    cached = params_for(path, num_inference_steps=4, step_cache=2)
    one, other = denoise(plain, cached).latents, denoise(fast, cached).latents
    assert (one - other).abs().max() / one.abs().max() < ROUNDING


def test_a_vae_that_overflows_in_float16_is_upcast_to_what_is_asked_for(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "sdxl.safetensors", "sdxl")
    assembly = Assembly(inspect_checkpoint(path)[0])
    device = torch.device("cpu")
    plain = assembly.build(device, torch.float16)
    brief = assembly.build(device, torch.float16, upcast=torch.bfloat16)
    assert (plain.vae.dtype, brief.vae.dtype) == (torch.float32, torch.bfloat16)
    assert brief.unet.dtype is torch.float16
