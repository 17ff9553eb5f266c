"""The engine on the demo models: the same pixels as plain diffusers, alone and in a batch."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sdserve.apps import Precision
from sdserve.checkpoints import inspect_checkpoint
from sdserve.errors import CheckpointError, OutOfMemoryError, UnsupportedCheckpointError
from sdserve.families import SCHEDULERS, Family, Kind, defaults_of
from sdserve.generation import GenerationParams, ImageFormat
from sdserve.safetensors_header import read_header
from tests.judge import obeys
from tests.values import params_for
from tools.plain_pipeline import load_plainly
from workers.denoising import Denoising
from workers.engine import DiffusionEngine
from workers.images import encode_image
from workers.loading import load_engine
from workers.pipeline_config import part_configs
from workers.prompts import PromptEncoder

pytestmark = pytest.mark.integration

DIFFUSERS: Any = diffusers  # its names are lazy, type checkers see none of them
DEMO_MODELS = Path(__file__).parents[2] / "demo_models"
PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module", params=["tiny-shapes-sd15", "tiny-shapes-sdxl"])
def path(request: pytest.FixtureRequest) -> Path:
    return DEMO_MODELS / f"{request.param}.safetensors"


@pytest.fixture(scope="module")
def engine(path: Path) -> DiffusionEngine:
    return load(path)


@pytest.fixture(scope="module")
def plain(path: Path) -> Any:
    return load_plainly(path)


def load(
    path: Path,
    on_phase: Callable[[str], None] = lambda _: None,
    precision: Precision = Precision.AUTO,
) -> DiffusionEngine:
    checkpoint, _ = inspect_checkpoint(path)
    return load_engine(checkpoint, device="cpu", threads=1, precision=precision, on_phase=on_phase)


def denoise(engine: DiffusionEngine, asked: GenerationParams, image_index: int = 0) -> Denoising:
    denoising = engine.begin(asked, image_index)
    while not denoising.is_done:
        engine.step([denoising])
    return denoising


def draw(engine: DiffusionEngine, asked: GenerationParams) -> NDArray[np.uint8]:
    return engine.decode(denoise(engine, asked))


def draw_plainly(plain: Any, asked: GenerationParams) -> NDArray[np.uint8]:
    class_name, options = SCHEDULERS[asked.scheduler]
    own = plain.scheduler
    plain.scheduler = getattr(DIFFUSERS, class_name).from_config(own.config, **options)
    try:
        image = plain(
            asked.prompt,
            negative_prompt=asked.negative_prompt or None,
            num_inference_steps=asked.num_inference_steps,
            guidance_scale=asked.guidance_scale,
            width=asked.width,
            height=asked.height,
            generator=torch.Generator().manual_seed(asked.seed),
        ).images[0]
    finally:
        plain.scheduler = own
    return np.asarray(image)


@pytest.mark.parametrize("scheduler", defaults_of(Kind(family=Family.SD1)).schedulers)
def test_alone_it_is_bit_exact_with_plain_diffusers(
    path: Path, engine: DiffusionEngine, plain: Any, scheduler: str
) -> None:
    asked = params_for(path, scheduler=scheduler, num_inference_steps=6)
    assert (draw(engine, asked) == draw_plainly(plain, asked)).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance_scale": 0.0},
        {"guidance_scale": 1.0},
        {"guidance_scale": 7.3},
        {"negative_prompt": "a green square"},
        {"width": 96, "height": 160},
        {"width": 72, "height": 104},
        {"num_inference_steps": 1},
        {"seed": 2**32 - 1},
    ],
    ids=str,
)
def test_every_parameter_means_what_it_means_to_diffusers(
    path: Path, engine: DiffusionEngine, plain: Any, changes: dict[str, Any]
) -> None:
    asked = params_for(path, scheduler="euler", **({"num_inference_steps": 4} | changes))
    assert (draw(engine, asked) == draw_plainly(plain, asked)).all()


def test_the_picture_obeys_the_prompt(path: Path, engine: DiffusionEngine) -> None:
    assert obeys(draw(engine, params_for(path)), PROMPT)


# Largest difference of a picture's latents, batched against alone, relative to their largest.
BATCHED = 1e-5
# PNDM weighs its last four predictions with factors that add up to 6.7, and makes as much of any
# rounding: a change of the initial noise in its last bit does the same (docs/performance.md).
BATCHED_PNDM = 1e-4


def test_pictures_batched_together_are_those_drawn_alone(
    path: Path, engine: DiffusionEngine
) -> None:
    """Every sampler, prompts, seeds, guidance and step counts mixed; some join late."""
    jobs = [
        params_for(
            path,
            seed=number,
            prompt=(PROMPT, "a white square on a green background")[number % 2],
            guidance_scale=(5.0, 1.0, 7.5)[number % 3],
            scheduler=scheduler,
            num_inference_steps=6 + number % 4,
        )
        for number, scheduler in enumerate(defaults_of(Kind(family=Family.SD1)).schedulers)
    ]
    alone = [denoise(engine, job).latents for job in jobs]
    together = [engine.begin(job, 0) for job in jobs]
    engine.step(together[:2])
    while active := [denoising for denoising in together if not denoising.is_done]:
        engine.step(active[:5])
    for expected, denoising in zip(alone, together, strict=True):
        name = denoising.params.scheduler
        difference = (denoising.latents - expected).abs().max() / expected.abs().max()
        assert difference < (BATCHED_PNDM if name == "pndm" else BATCHED), name


def test_same_seed_same_bytes(path: Path, engine: DiffusionEngine) -> None:
    asked = params_for(path, num_inference_steps=4)
    first, second, other = (
        encode_image(draw(engine, job), ImageFormat.PNG, asked, model="tiny", seed=7).data
        for job in (asked, asked, replace(asked, seed=8))
    )
    assert first == second
    assert first != other


def test_image_k_of_a_request_is_drawn_from_seed_plus_k(
    path: Path, engine: DiffusionEngine
) -> None:
    asked = params_for(path, seed=2**32 - 1, num_inference_steps=2, num_images=3)
    third = denoise(engine, asked, 2)
    assert third.seed == 1
    assert torch.equal(third.latents, denoise(engine, replace(asked, seed=1)).latents)


@pytest.mark.parametrize("scheduler", ["euler", "heun", "pndm"])
def test_progress_counts_the_steps_that_were_asked_for(
    path: Path, engine: DiffusionEngine, scheduler: str
) -> None:
    denoising = engine.begin(params_for(path, scheduler=scheduler, num_inference_steps=5), 0)
    seen = [denoising.steps_done]
    while not denoising.is_done:
        engine.step([denoising])
        seen.append(denoising.steps_done)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, 5)
    assert 5 not in seen[:-1]


@pytest.mark.parametrize("token", ["<|endoftext|>", "<|startoftext|>", "<|EndOfText|>"])
def test_a_control_token_in_a_prompt_is_only_text(
    path: Path, engine: DiffusionEngine, token: str
) -> None:
    """As a real end of text it would hide the words after it."""
    drawn = [
        denoise(engine, params_for(path, prompt=f"{token} {rest}", num_inference_steps=1)).latents
        for rest in ("a red circle", "a green square")
    ]
    assert not torch.equal(*drawn)


def test_out_of_memory_names_a_size_that_fits(
    path: Path, engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    denoising = engine.begin(params_for(path, width=256, height=256), 0)
    pipeline: Any = vars(engine)["_pipeline"]
    monkeypatch.setattr(pipeline.unet, "forward", fail)
    with pytest.raises(OutOfMemoryError, match="too little memory for 256x256: try 128x128"):
        engine.step([denoising])
    assert denoising.calls_done == 0


def test_a_batch_that_does_not_fit_goes_one_by_one(
    path: Path, engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline: Any = vars(engine)["_pipeline"]
    forward = pipeline.unet.forward

    def fits_one(latents: torch.Tensor, *rest: Any, **options: Any) -> Any:
        if len(latents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(latents, *rest, **options)

    monkeypatch.setattr(pipeline.unet, "forward", fits_one)
    batch = [engine.begin(params_for(path, seed=seed), 0) for seed in (1, 2)]
    engine.step(batch)
    assert [denoising.calls_done for denoising in batch] == [1, 1]


def test_a_picture_that_does_not_decode_at_once_is_decoded_in_tiles(
    path: Path, engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae: Any = vars(engine)["_pipeline"].vae
    sizes = vae.tile_latent_min_size, vae.tile_sample_min_size
    forward, seen = vae.decoder.forward, list[int]()

    def fits_half_a_side(latents: Any, *rest: Any, **options: Any) -> Any:
        seen.append(latents.shape[-1])
        if latents.shape[-1] > max(seen) // 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(latents, *rest, **options)

    monkeypatch.setattr(vae.decoder, "forward", fits_half_a_side)
    assert obeys(draw(engine, params_for(path)), PROMPT)
    assert len(seen) > 4  # the whole one, then tiles that overlap
    odd = params_for(path, width=200, height=120, num_inference_steps=1)  # half of it is 12.5
    assert draw(engine, odd).shape == (120, 200, 3)
    assert not vae.use_tiling
    assert (vae.tile_latent_min_size, vae.tile_sample_min_size) == sizes


def test_loading_tells_its_phases_in_order(path: Path) -> None:
    phases: list[str] = []
    load(path, phases.append)
    assert phases[-1] == "building the pipeline"
    *reading, last = [phase for phase in phases[:-1] if phase != "importing libraries"]
    assert all(phase.startswith("reading file ") for phase in reading)
    assert last == "reading file 100%"


def test_a_warmed_engine_draws_the_same(path: Path) -> None:
    asked = params_for(path, num_inference_steps=2)
    fresh, warmed = load(path), load(path)
    warmed.warm()
    assert (draw(fresh, asked) == draw(warmed, asked)).all()


def test_a_file_that_changed_its_kind_since_it_was_deployed_is_refused(path: Path) -> None:
    checkpoint, _ = inspect_checkpoint(path)
    stale = replace(checkpoint, kind=Kind(family=Family.SD2))
    with pytest.raises(CheckpointError, match=r"was replaced by a .* deploy it again"):
        load_engine(stale, device="cpu", threads=1, on_phase=lambda _: None)


def test_a_file_with_missing_tensors_is_refused(path: Path, tmp_path: Path) -> None:
    """diffusers leaves such a tensor on the meta device and draws garbage."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    del tensors["model.diffusion_model.out.2.weight"]
    damaged = tmp_path / path.name
    save_file(tensors, damaged, metadata)
    with pytest.raises(UnsupportedCheckpointError, match="use the full, unpruned checkpoint"):
        load(damaged)


def test_a_file_cannot_name_a_class_to_import(path: Path, tmp_path: Path) -> None:
    header = read_header(path)
    hostile = (
        header.metadata["diffusers_config"]
        .replace('"PNDMScheduler"', '"Popen"')
        .replace('"EulerDiscreteScheduler"', '"Popen"')
    )
    kind = inspect_checkpoint(path)[0].kind
    with pytest.raises(CheckpointError, match="'diffusers_config'"):
        part_configs(path, kind, replace(header, metadata={"diffusers_config": hostile}))


def test_a_file_that_was_replaced_since_it_was_deployed_is_refused(
    path: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(path, tmp_path))
    checkpoint, _ = inspect_checkpoint(copy)
    os.utime(copy, (1, 1))
    with pytest.raises(CheckpointError, match=r"was replaced after it was deployed: deploy it"):
        load_engine(checkpoint, device="cpu", threads=1, on_phase=lambda _: None)


def test_a_prompt_that_comes_again_is_not_encoded_again_and_draws_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(path)
    pipeline: Any = vars(engine)["_pipeline"]
    encode, encoded = pipeline.encode_prompt, list[tuple[str, str | None]]()

    def count(prompt: str, **options: Any) -> Any:
        encoded.append((prompt, options["negative_prompt"]))
        return encode(prompt, **options)

    monkeypatch.setattr(pipeline, "encode_prompt", count)
    asked = params_for(path, num_inference_steps=2)
    others = [
        replace(asked, prompt="a blue square"),
        replace(asked, negative_prompt="blurred"),
        replace(asked, guidance_scale=1.0),
    ]
    jobs = [asked, *others]
    first = [denoise(engine, job) for job in jobs]
    assert len(encoded) == len(jobs)
    again = [denoise(engine, replace(job, num_inference_steps=2)) for job in reversed(jobs)][::-1]
    assert len(encoded) == len(jobs)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.latents, other.latents)
        assert (one.conditioning.is_cached, other.conditioning.is_cached) == (False, True)


def test_embeddings_that_are_kept_have_a_bound_in_bytes(path: Path) -> None:
    pipeline = load_plainly(path)
    device = torch.device("cpu")
    size = PromptEncoder(pipeline, device).encode("0", "", is_guided=True).nbytes
    prompts = PromptEncoder(pipeline, device, cache_bytes=3 * size)

    def is_kept(prompt: str) -> bool:
        return prompts.encode(prompt, "", is_guided=True).is_cached

    assert not any(is_kept(prompt) for prompt in "abc")
    assert is_kept("a")
    assert not is_kept("d")  # which takes the place of b
    assert [is_kept(prompt) for prompt in "acd"] == [True, True, True]
    assert not is_kept("b")
    prompts.forget()
    assert not any(is_kept(prompt) for prompt in "acb")
    assert is_kept("a")
    none = PromptEncoder(pipeline, device, cache_bytes=0)
    assert not any(none.encode("a", "", is_guided=True).is_cached for _ in range(3))


@pytest.mark.parametrize("scheduler", defaults_of(Kind(family=Family.SD1)).schedulers)
def test_in_bfloat16_it_is_plain_diffusers_in_bfloat16_and_nearly_the_picture_of_float32(
    path: Path, engine: DiffusionEngine, brief: tuple[DiffusionEngine, Any], scheduler: str
) -> None:
    asked = params_for(path, scheduler=scheduler, num_inference_steps=6)
    ours, plain = brief
    drawn = draw(ours, asked)
    assert (drawn == draw_plainly(plain, asked)).all()
    error = np.square(drawn.astype(float) - draw(engine, asked)).mean()
    assert 10 * np.log10(255**2 / error) > 30


@pytest.fixture(scope="module")
def brief(path: Path) -> tuple[DiffusionEngine, Any]:
    """Ours and plain diffusers in bfloat16."""
    engine = load(path, precision=Precision.BFLOAT16)
    assert engine.precision == "bfloat16"
    return engine, load_plainly(path, torch.bfloat16)
