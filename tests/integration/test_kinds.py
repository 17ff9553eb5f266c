"""Every kind of checkpoint: loaded bit for bit, and drawn, as plain diffusers does it."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdserve.checkpoints import inspect_checkpoint
from sdserve.families import Family
from sdserve.safetensors_header import read_header
from tests.drawing import PROMPT, draw, load
from tests.values import params_for
from tools.make_checkpoint import DTYPES, KINDS, full_shapes, make_checkpoint
from tools.plain_pipeline import load_plainly
from workers.engine import DiffusionEngine
from workers.weights import copy_tensors, map_tensors

pytestmark = pytest.mark.integration

PARTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2")
# diffusers 0.42 leaves the guidance embedding out: there is nothing to compare with.
COMPARABLE = [kind for kind in KINDS if kind != "sd1-lcm"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", COMPARABLE)
def test_weights_and_latents_equal_those_of_plain_diffusers(
    tmp_path: Path, kind: str, dtype: str
) -> None:
    path = make_checkpoint(tmp_path / f"{kind}.safetensors", kind, dtype=dtype)
    engine, plain = load(path), load_plainly(path)
    pipeline: Any = vars(engine)["_pipeline"]
    for part in PARTS:
        ours, theirs = getattr(pipeline, part, None), getattr(plain, part, None)
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert ours.state_dict().keys() == theirs.state_dict().keys()
            for name, tensor in theirs.state_dict().items():
                assert torch.equal(ours.state_dict()[name], tensor), name
    latents, _ = draw(engine, path, num_inference_steps=3)
    assert torch.equal(latents, draw_plainly(plain, engine, path))


def draw_plainly(
    plain: Any, engine: DiffusionEngine, path: Path, output_type: str = "latent"
) -> Any:
    params = params_for(path, num_inference_steps=3)
    plain.scheduler = engine.begin(params, 0).scheduler
    checkpoint, _ = inspect_checkpoint(path)
    size = {"height": params.height, "width": params.width}
    extra: dict[str, Any] = dict(size)
    if checkpoint.kind.is_inpainting:
        shape = (1, 1, params.height, params.width)
        empty = {"image": torch.zeros(shape).repeat(1, 3, 1, 1), "mask_image": torch.ones(shape)}
        extra = size | empty | {"strength": 1.0}
    elif checkpoint.kind.family is Family.SDXL_REFINER:
        side = params.height // plain.vae_scale_factor
        full = {"original_size": (params.height, params.width), "strength": 1.0}
        full["target_size"] = full["original_size"]
        extra = full | {"image": torch.zeros(1, 4, side, side)}
    return plain(
        prompt=PROMPT,
        num_inference_steps=3,
        guidance_scale=params.guidance_scale,
        generator=torch.Generator().manual_seed(params.seed),
        output_type=output_type,
        **extra,
    ).images


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "sd3", "sd35-large-turbo"])
def test_pictures_equal_those_of_plain_diffusers(tmp_path: Path, kind: str) -> None:
    """SD 3 decodes with a shift of the latents, the others without."""
    path = make_checkpoint(tmp_path / f"{kind}.safetensors", kind)
    engine, plain = load(path), load_plainly(path)
    _, picture = draw(engine, path, num_inference_steps=3)
    (expected,) = draw_plainly(plain, engine, path, "pil")
    assert (picture == np.asarray(expected)).all()


@pytest.mark.parametrize("kind", ["sd1-lcm", "sdxl-lightning", "sd2-v", "sd3", "sd35-medium"])
def test_a_warmed_engine_draws_the_same(tmp_path: Path, kind: str) -> None:
    path = make_checkpoint(tmp_path / "model.safetensors", kind)
    fresh, warmed = load(path), load(path)
    warmed.warm()
    assert torch.equal(draw(fresh, path)[0], draw(warmed, path)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_guidance_is_an_input_of_a_guidance_distilled_model(tmp_path: Path, dtype: str) -> None:
    path = make_checkpoint(tmp_path / "model.safetensors", "sd1-lcm", dtype=dtype)
    engine = load(path)
    weak, _ = draw(engine, path, guidance_scale=2.0)
    strong, picture = draw(engine, path, guidance_scale=9.0)
    assert not torch.equal(weak, strong)
    assert picture.std() > 0
    # One row: such a model has no second, unconditional prediction.
    assert len(engine.begin(params_for(path), 0).conditioning.embeddings) == 1


def test_averaged_weights_are_left_alone(tmp_path: Path) -> None:
    pruned = make_checkpoint(tmp_path / "pruned.safetensors", "sd1")
    whole = make_checkpoint(tmp_path / "whole.safetensors", "sd1", with_ema=True)
    assert whole.stat().st_size > pruned.stat().st_size
    assert torch.equal(draw(load(whole), whole)[0], draw(load(pruned), pruned)[0])


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "sdxl-refiner", "sd35-medium"])
def test_missing_parts_are_borrowed_from_another_checkpoint(tmp_path: Path, kind: str) -> None:
    whole = make_checkpoint(tmp_path / "whole.safetensors", kind)
    bare = make_checkpoint(tmp_path / "bare.safetensors", kind, without=["vae", "text"])
    family = inspect_checkpoint(whole)[0].kind.family
    bare.with_suffix(".yaml").write_text(
        f"family: {family}\nvae: whole.safetensors\ntext_encoder: whole.safetensors\n"
    )
    assert torch.equal(draw(load(bare), bare)[0], draw(load(whole), whole)[0])


def test_a_vae_of_its_own_file_takes_the_place_of_the_checkpoints(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = make_checkpoint(tmp_path / "model.safetensors", "sd1")
    own = draw(load(path), path)
    other = make_checkpoint(tmp_path / "other.safetensors", "sd1", seed=1)
    with safe_open(other, "pt") as file:
        prefix = "first_stage_model."
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        vae = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    save_file(vae, tmp_path / "vae.safetensors")
    path.with_suffix(".yaml").write_text("vae: vae.safetensors\n")
    replaced = draw(load(path), path)
    assert torch.equal(own[0], replaced[0])
    assert not (own[1] == replaced[1]).all()


def test_the_way_to_a_gpu_carries_the_same_bytes(tmp_path: Path) -> None:
    """Here to the CPU: the readers, chunks and types are the same ones."""
    path = make_checkpoint(tmp_path / "model.safetensors", "sdxl")
    header = read_header(path)
    names = [name for name in header.spans if "embedders.0" not in name]  # leaves a gap
    told = list[int]()
    mapped = map_tensors(path, names)
    for dtype in (torch.float16, torch.float32):
        told.clear()
        copied = copy_tensors(path, header, names, torch.device("cpu"), dtype, told.append)
        assert copied.keys() == mapped.keys()
        assert all(torch.equal(copied[name], mapped[name].to(dtype)) for name in names)
        assert sum(told) == sum(mapped[name].nbytes for name in names)


def test_tensors_of_mixed_types_are_read_where_they_lie(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {
        "a": torch.arange(3, dtype=torch.uint8),  # an odd number of bytes before the others
        "b": torch.ones(5, dtype=torch.float16),
        "c": torch.full((2, 2), 3.0, dtype=torch.float64),
        "d": torch.tensor(4.0),
    }
    path = tmp_path / "mixed.safetensors"
    save_file(tensors, path)
    header = read_header(path)
    read = copy_tensors(path, header, tensors, torch.device("cpu"), torch.float32)
    assert read["a"].dtype is torch.uint8
    assert all(torch.equal(read[name], tensors[name].to(read[name].dtype)) for name in tensors)
    assert {read[name].dtype for name in "bcd"} == {torch.float32}


def test_weights_that_keep_their_type_are_views_of_the_file(tmp_path: Path) -> None:
    """So replicas of one node share them through the page cache."""
    path = make_checkpoint(tmp_path / "model.safetensors", "sd1", dtype="f32")
    engine = load(path)
    unet: Any = vars(engine)["_pipeline"].unet
    address = unet.conv_in.weight.data_ptr()
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    (place,) = [
        line
        for line in maps
        if int(line[0].split("-")[0], 16) <= address < int(line[0].split("-")[1], 16)
    ]
    assert place[-1] == str(path)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "sdxl-refiner"])
def test_published_dimensions_have_the_published_number_of_parameters(kind: str) -> None:
    shapes = full_shapes(kind)
    unet = sum(math.prod(s) for name, s in shapes.items() if name.startswith("model."))
    vae = sum(math.prod(s) for name, s in shapes.items() if name.startswith("first_stage"))
    assert (unet, vae) == (
        {
            "sd1": 859_520_964,
            "sd2": 865_910_724,
            "sdxl": 2_567_463_684,
            "sdxl-refiner": 2_259_526_660,
        }[kind],
        83_653_863,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_full_size_files_are_told_apart_by_their_headers(
    tmp_path: Path, kind: str, dtype: str
) -> None:
    name = "xl" if kind.startswith("sdxl") else "model"
    path = tmp_path / f"{name}.safetensors"
    make_checkpoint(path, kind, size="full", dtype=dtype, is_sparse=True)
    assert str(inspect_checkpoint(path)[0].kind) == kind


OFFLINE = """
import socket, sys
from pathlib import Path

def refuse(*arguments, **options):
    raise AssertionError(f"the network was asked for: {arguments}")

socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse

from sdserve.checkpoints import inspect_checkpoint
from workers.loading import load_engine

checkpoint, _ = inspect_checkpoint(Path(sys.argv[1]))
load_engine(checkpoint, device="cpu", threads=1, on_phase=lambda _: None)
"""


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "sd3"])
def test_loading_asks_nothing_of_the_network(tmp_path: Path, kind: str) -> None:
    path = make_checkpoint(tmp_path / "model.safetensors", kind)
    command = [sys.executable, "-c", OFFLINE, str(path)]
    environment = {"HF_HOME": str(tmp_path / "empty"), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
