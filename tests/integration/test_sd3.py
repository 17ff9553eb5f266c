"""What only SD 3 and 3.5 have: a transformer told by its header, a T5 that is left out."""

import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from sdserve.checkpoints import inspect_checkpoint
from sdserve.errors import UnsupportedCheckpointError
from sdserve.safetensors_header import read_header
from tests.drawing import draw, load
from tests.values import params_for
from tools.make_checkpoint import full_shapes, make_checkpoint
from workers.loading import ranges_to_read
from workers.pipeline_config import part_configs

pytestmark = pytest.mark.integration

DIFFUSERS: Any = diffusers  # its names are lazy, type checkers see none of them


def add_tensors(path: Path, tensors: dict[str, torch.Tensor], without: str = "") -> Path:
    """A copy of a checkpoint with other tensors."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name != without]  # noqa: SIM118 (no mapping)
        kept = {name: file.get_tensor(name) for name in names}
        metadata = file.metadata()
    copy = path.with_name("copy.safetensors")
    save_file(kept | tensors, copy, metadata)
    return copy


@pytest.mark.parametrize("kind", ["sd3", "sd35-medium"])
def test_pictures_of_sd3_batched_together_are_those_drawn_alone(tmp_path: Path, kind: str) -> None:
    path = make_checkpoint(tmp_path / f"{kind}.safetensors", kind)
    engine = load(path)
    jobs: list[dict[str, Any]] = [
        {"num_inference_steps": 3, "seed": 1},
        {"num_inference_steps": 4, "guidance_scale": 1.0, "prompt": "a green square"},
        {"num_inference_steps": 5, "negative_prompt": "a circle", "guidance_scale": 2.0},
    ]
    together = [engine.begin(params_for(path, **job), 0) for job in jobs]
    engine.step(together[:2])  # the third one joins late
    while active := [denoising for denoising in together if not denoising.is_done]:
        engine.step(active)
    for job, denoising in zip(jobs, together, strict=True):
        alone = engine.begin(params_for(path, **job), 0)
        while not alone.is_done:
            engine.step([alone])
        difference = (denoising.latents - alone.latents).abs().max() / alone.latents.abs().max()
        assert difference < 1e-5


def test_a_t5_in_the_file_is_not_read(tmp_path: Path) -> None:
    """It is read by no prompt, so it must not fill the page cache either."""
    path = make_checkpoint(tmp_path / "model.safetensors", "sd3")
    whole = add_tensors(path, {"text_encoders.t5xxl.transformer.shared.weight": torch.ones(64, 8)})
    assert torch.equal(draw(load(whole), whole)[0], draw(load(path), path)[0])
    header = read_header(whole)
    (t5,) = [span for name, span in header.spans.items() if "t5xxl" in name]
    assert (t5.begin, t5.end) not in ranges_to_read(whole)
    assert len(ranges_to_read(whole)) == len(header.spans) - 1


def test_a_float8_transformer_is_cast(tmp_path: Path) -> None:
    from safetensors import safe_open

    path = make_checkpoint(tmp_path / "model.safetensors", "sd35-medium")
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith("model.")]  # noqa: SIM118
        narrow = {name: file.get_tensor(name).to(torch.float8_e4m3fn) for name in names}
    drawn = draw(load(add_tensors(path, narrow)), path)[0]
    wide = {name: tensor.to(torch.float16) for name, tensor in narrow.items()}
    assert torch.equal(drawn, draw(load(add_tensors(path, wide)), path)[0])


def test_a_projection_of_clip_l_is_not_used_by_sd3(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model.safetensors", "sd3")
    name = "text_encoders.clip_l.transformer.text_projection.weight"
    other = add_tensors(path, {name: torch.zeros(32, 32)})
    assert torch.equal(draw(load(other), other)[0], draw(load(path), path)[0])


def test_an_sd3_with_missing_tensors_is_refused(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model.safetensors", "sd35-medium")
    for name in ("joint_blocks.1.x_block.attn2.qkv.weight", "pos_embed", "final_layer.linear.bias"):
        damaged = add_tensors(path, {}, without=f"model.diffusion_model.{name}")
        with pytest.raises(UnsupportedCheckpointError, match="use the full, unpruned checkpoint"):
            load(damaged)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [("sd3", 2_028_328_000), ("sd35-medium", 2_243_171_520), ("sd35-large", 8_056_627_520)],
)
def test_the_transformers_of_sd3_are_told_by_their_headers(
    tmp_path: Path, kind: str, parameters: int
) -> None:
    """Their whole configuration: diffusers builds a model of the published size from it."""
    path = tmp_path / "model.safetensors"
    make_checkpoint(path, kind, size="full", is_sparse=True)
    config = part_configs(path, inspect_checkpoint(path)[0].kind, read_header(path))["transformer"]
    with torch.device("meta"):
        model = DIFFUSERS.SD3Transformer2DModel.from_config(config)
    assert sum(tensor.numel() for tensor in model.parameters()) == parameters
    names = [name for name in full_shapes(kind) if name.startswith("model.")]
    of_file = sum(math.prod(full_shapes(kind)[name]) for name in names)
    assert of_file == parameters + model.pos_embed.pos_embed.numel()
