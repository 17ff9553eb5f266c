"""A step cache: an approximation that is asked for, of a UNet's inner part."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook

from tests.drawing import load
from tests.judge import obeys
from tests.values import params_for
from tools.make_checkpoint import make_checkpoint
from workers.denoising import Denoising
from workers.engine import DiffusionEngine
from workers.step_cache import run_and_keep, run_shallow

pytestmark = pytest.mark.integration

DEMO_MODELS = Path(__file__).parents[2] / "demo_models"


@pytest.fixture(scope="module", params=["tiny-shapes-sd15", "tiny-shapes-sdxl"])
def path(request: pytest.FixtureRequest) -> Path:
    return DEMO_MODELS / f"{request.param}.safetensors"


@pytest.fixture(scope="module")
def engine(path: Path) -> DiffusionEngine:
    return load(path)


def unet_of(engine: DiffusionEngine) -> Any:
    return vars(engine)["_pipeline"].unet


def denoise(engine: DiffusionEngine, path: Path, **changes: Any) -> Denoising:
    denoising = engine.begin(params_for(path, **changes), 0)
    while not denoising.is_done:
        engine.step([denoising])
    return denoising


def psnr(one: Any, other: Any) -> float:
    return float(10 * np.log10(255**2 / np.square(one.astype(float) - other).mean()))


@pytest.mark.parametrize(
    "kind", ["sd1", "sd1-lcm", "sd1-inpainting", "sd2", "sdxl", "sdxl-refiner"]
)
def test_with_the_features_of_the_same_step_it_is_the_whole_network_bit_for_bit(
    tmp_path: Path, kind: str
) -> None:
    path = make_checkpoint(tmp_path / f"{kind}.safetensors", kind)
    engine = load(path)
    denoiser: Any = vars(engine)["_denoiser"]
    denoising = engine.begin(params_for(path, num_inference_steps=3), 0)
    engine.step([denoising])
    with torch.inference_mode():
        arguments, options = denoiser._inputs([denoising])
        whole = unet_of(engine)(*arguments, **options, return_dict=False)[0]
        kept, deep = run_and_keep(unet_of(engine), *arguments, **options)
        assert torch.equal(kept, whole)
        assert torch.equal(run_shallow(unet_of(engine), deep, *arguments, **options), whole)
        other = run_shallow(unet_of(engine), deep + 0.1, *arguments, **options)
        assert not torch.equal(other, whole)


def test_only_every_nth_call_is_whole(
    path: Path, engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[int]()
    forward = unet_of(engine).forward

    def count(*arguments: Any, **options: Any) -> Any:
        calls.append(denoising.calls_done)
        return forward(*arguments, **options)

    monkeypatch.setattr(unet_of(engine), "forward", count)
    for interval, expected in ((1, [0, 1, 2, 3, 4, 5, 6]), (2, [0, 2, 4, 6]), (3, [0, 3, 6])):
        calls.clear()
        asked = params_for(path, num_inference_steps=7, scheduler="euler", step_cache=interval)
        denoising = engine.begin(asked, 0)
        while not denoising.is_done:
            engine.step([denoising])
        assert calls == expected


def test_it_keeps_a_picture_s_own_features_and_nothing_without_it(
    path: Path, engine: DiffusionEngine
) -> None:
    changes = [{"step_cache": 2, "seed": seed} for seed in (1, 2)]
    batch = [engine.begin(params_for(path, **one), 0) for one in (*changes, {})]
    engine.step(batch)
    assert batch[2].deep is None
    for denoising in batch[:2]:
        assert denoising.deep is not None
        assert len(denoising.deep) == denoising.rows
        assert denoising.deep.untyped_storage().nbytes() == denoising.deep.nbytes


def test_batched_with_any_others_it_is_the_picture_drawn_alone(
    path: Path, engine: DiffusionEngine
) -> None:
    jobs: Sequence[dict[str, Any]] = [
        {"step_cache": 2, "seed": 1, "num_inference_steps": 8},
        {"seed": 2, "num_inference_steps": 6},
        {"step_cache": 3, "seed": 3, "guidance_scale": 1.0, "scheduler": "dpmpp_2m"},
        {"step_cache": 2, "seed": 4, "prompt": "a white square on a green background"},
    ]
    together = [engine.begin(params_for(path, **{"scheduler": "euler", **job}), 0) for job in jobs]
    engine.step(together[:1])  # the others are out of step with it
    while active := [denoising for denoising in together if not denoising.is_done]:
        engine.step(active)
    for job, denoising in zip(jobs, together, strict=True):
        alone = denoise(engine, path, **{"scheduler": "euler", **job}).latents
        assert (denoising.latents - alone).abs().max() / alone.abs().max() < 1e-5


@pytest.mark.parametrize(("interval", "least"), [(2, 28), (3, 24)])
def test_the_picture_is_near_the_exact_one_and_obeys_the_prompt(
    path: Path, engine: DiffusionEngine, interval: int, least: float
) -> None:
    exact = engine.decode(denoise(engine, path))
    drawn = engine.decode(denoise(engine, path, step_cache=interval))
    assert obeys(drawn, params_for(path).prompt)
    assert least < psnr(drawn, exact) < 100
    assert (drawn == engine.decode(denoise(engine, path, step_cache=interval))).all()


def test_progress_and_previews_go_on_in_shallow_steps(path: Path, engine: DiffusionEngine) -> None:
    denoising = engine.begin(params_for(path, num_inference_steps=4, step_cache=2), 0)
    progress = list[int]()
    while not denoising.is_done:
        denoising.is_watched = True
        engine.step([denoising])
        progress.append(denoising.steps_done)
        assert denoising.foreseen is not None
        assert engine.paint(denoising.foreseen).any()
        denoising.foreseen = None
    assert progress == sorted(progress)
    assert progress[-1] == 4


def test_a_batch_that_does_not_fit_goes_one_by_one_and_draws_the_same(
    path: Path, engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers import unet

    changes = [{"step_cache": 2, "num_inference_steps": 4, "seed": seed} for seed in (1, 2)]
    expected = [denoise(engine, path, **one).latents for one in changes]

    def fits_one(network: Any, deep: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if len(deep) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run_shallow(network, deep, *arguments, **options)

    monkeypatch.setattr(unet, "run_shallow", fits_one)
    batch = [engine.begin(params_for(path, **one), 0) for one in changes]
    fits = list[bool]()
    while not batch[0].is_done:
        fits.append(engine.step(batch))
    assert not all(fits)
    for denoising, latents in zip(batch, expected, strict=True):
        assert (denoising.latents - latents).abs().max() / latents.abs().max() < 1e-5


def test_a_network_that_was_sent_away_is_brought_back(path: Path) -> None:
    """As where a GPU is too small: each part is there only in its own turn."""
    engine = load(path)
    expected = denoise(engine, path, num_inference_steps=2, step_cache=2).latents
    unet = unet_of(engine)
    brought = list[bool]()
    _, hook = cpu_offload_with_hook(unet, torch.device("cpu"))
    pre_forward = hook.hook.pre_forward

    def note(*arguments: Any, **options: Any) -> Any:
        brought.append(True)
        return pre_forward(*arguments, **options)

    hook.hook.pre_forward = note
    assert torch.equal(denoise(engine, path, num_inference_steps=2, step_cache=2).latents, expected)
    assert len(brought) == 2
