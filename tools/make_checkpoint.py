"""Make a checkpoint with random weights, in the original layout of a kind: for tests and bench.

    python -m tools.make_checkpoint sdxl --size full --dtype f16 --out /tmp/sdxl.safetensors

A tiny file brings its own configuration in its metadata; a full one has the published dimensions.
"""

import argparse
import json
import math
import struct
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sdserve.families import Family
from tools import layouts

KINDS = (
    "sd1", "sd1-v", "sd1-lcm", "sd1-inpainting", "sd2", "sd2-v", "sd2-turbo", "sd2-inpainting",
    "sdxl", "sdxl-v", "sdxl-turbo", "sdxl-lightning", "sdxl-lcm", "sdxl-inpainting",
    "sdxl-refiner", "sd3", "sd35-medium", "sd35-large", "sd35-large-turbo",
)  # fmt: skip
DTYPES = {"f16": ("F16", 2), "bf16": ("BF16", 2), "f32": ("F32", 4)}
_TRANSFORMERS = {
    family: {
        "num_layers": layers,
        "num_attention_heads": layers,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": side,
        "dual_attention_layers": list(range(dual)),
        "qk_norm": norm,
    }
    for family, layers, side, dual, norm in (
        (Family.SD3, 24, 192, 0, None),
        (Family.SD35_MEDIUM, 24, 384, 13, "rms_norm"),
        (Family.SD35_LARGE, 38, 192, 0, "rms_norm"),
    )
}
_PIECE = 16 << 20  # numbers drawn at a time
_NORMS = ("norm", ".ln_", "in_layers.0.", "out_layers.0.", ".out.0.")
_GUIDANCE_WIDTH = 256  # of the guidance embedding of LCMs


def make_checkpoint(
    path: Path,
    kind: str,
    *,
    size: str = "tiny",
    dtype: str = "f16",
    without: Sequence[str] = (),
    with_ema: bool = False,
    is_sparse: bool = False,
    seed: int = 0,
) -> Path:
    """Write a checkpoint file.

    Args:
        path: where.
        kind: one of KINDS. Prediction and distillation are told in metadata: tensors cannot.
        size: "tiny" (5 to 15 MB) or "full" (2 to 36 GB).
        dtype: one of DTYPES.
        without: "vae", "text": parts that are left out.
        with_ema: carry the averaged UNet of training as well.
        is_sparse: zeros that take no disk instead of weights, for whoever reads headers only.
        seed: of the weights.
    """
    configs = _configs(kind, size)
    shapes = _shapes(kind, configs)
    if with_ema:
        shapes |= dict(layouts.ema(_network(configs)))
    dropped = tuple(prefix for part in without for prefix in _PARTS[part])
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith(dropped)}
    with path.open("wb") as file:
        _write_header(file, shapes, DTYPES[dtype], _metadata(kind, size, configs))
        if is_sparse:
            file.truncate(file.tell() + sum(map(math.prod, shapes.values())) * DTYPES[dtype][1])
            return path
        random = np.random.default_rng(seed)
        for name, shape in shapes.items():
            _write_tensor(file, name, shape, dtype, random)
    return path


_PARTS = {
    "vae": ("first_stage_model.",),
    "text": ("cond_stage_model.", "conditioner.", "text_encoders."),
}


def full_shapes(kind: str) -> layouts.Shapes:
    """Names and shapes of a kind's tensors in the published dimensions."""
    return _shapes(kind, _configs(kind, "full"))


def _family(kind: str) -> Family:
    return max((family for family in Family if kind.startswith(family)), key=len)


def _network(configs: Mapping[str, Any]) -> layouts.Shapes:
    if "unet" in configs:
        return layouts.unet(configs["unet"])
    return layouts.mmdit(configs["transformer"])


def _shapes(kind: str, configs: Mapping[str, Any]) -> layouts.Shapes:
    shapes = _network(configs) | layouts.vae(configs["vae"])
    match _family(kind):
        case Family.SD1:
            text = layouts.clip(configs["text_encoder"], "cond_stage_model.transformer")
        case Family.SD2:
            text = layouts.open_clip(
                configs["text_encoder"], "cond_stage_model.model", unused_layers=1
            )
        case Family.SDXL:
            text = layouts.clip(
                configs["text_encoder"], "conditioner.embedders.0.transformer"
            ) | layouts.open_clip(
                configs["text_encoder_2"], "conditioner.embedders.1.model", unused_layers=0
            )
        case Family.SDXL_REFINER:
            text = layouts.open_clip(
                configs["text_encoder_2"], "conditioner.embedders.0.model", unused_layers=0
            )
        case Family.SD3 | Family.SD35_MEDIUM | Family.SD35_LARGE:
            text = layouts.projected_clip(
                configs["text_encoder"], "text_encoders.clip_l"
            ) | layouts.projected_clip(configs["text_encoder_2"], "text_encoders.clip_g")
    return shapes | text


def _configs(kind: str, size: str) -> dict[str, Any]:
    family = _family(kind)
    name = "sd3" if family.is_sd3 else family
    text = (files("workers") / "configs" / f"{name}.json").read_text("utf-8")
    configs: dict[str, Any] = json.loads(text)
    if family.is_sd3:
        configs["transformer"] |= _TRANSFORMERS[family]
    if size == "tiny":
        _shrink(configs, family)
    if "inpainting" in kind:
        configs["unet"]["in_channels"] = 9
    if kind == "sd1-lcm":  # the merged ones (sdxl-lcm here) have no such input
        configs["unet"]["time_cond_proj_dim"] = _GUIDANCE_WIDTH
    return configs


def _shrink(configs: dict[str, Any], family: Family) -> None:
    """The same structure, small: two levels, narrow text encoders of different widths."""
    # diffusers tells SDXL's two encoders apart by their widths alone.
    narrow, wide = 32, 64
    if family.is_sd3:
        _shrink_transformer(configs["transformer"], narrow + wide)
    else:
        _shrink_unet(configs["unet"], family, narrow, wide)
    configs["vae"] |= {
        "block_out_channels": [32, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "sample_size": 64,
    }
    first = wide if family is Family.SD2 else narrow
    for name, width in (("text_encoder", first), ("text_encoder_2", wide)):
        if name in configs:
            configs[name] |= {
                "hidden_size": width,
                "intermediate_size": 2 * width,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "projection_dim": width,
            }


def _shrink_unet(unet: dict[str, Any], family: Family, narrow: int, wide: int) -> None:
    unet |= {
        "block_out_channels": [32, 64],
        "cross_attention_dim": {Family.SD1: narrow, Family.SDXL: narrow + wide}.get(family, wide),
        "attention_head_dim": 2 if family is Family.SD1 else [2, 4],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "sample_size": 32,
    }
    if family.is_xl:
        ids = 6 if family is Family.SDXL else 5
        unet |= {
            "transformer_layers_per_block": [1, 2],
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": ids * 8 + wide,
        }


def _shrink_transformer(transformer: dict[str, Any], pooled: int) -> None:
    transformer |= {
        "num_layers": 3,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "joint_attention_dim": pooled + 32,  # wider than both encoders, as in the published ones
        "pooled_projection_dim": pooled,
        "pos_embed_max_size": 40,
        "dual_attention_layers": transformer["dual_attention_layers"][:2],
        "sample_size": 32,
    }


def _metadata(kind: str, size: str, configs: Mapping[str, Any]) -> dict[str, str]:
    metadata = {"modelspec.title": f"random {kind}"}
    if not _family(kind).is_sd3:
        metadata["modelspec.prediction_type"] = "v" if kind.endswith("-v") else "epsilon"
    if size == "tiny":
        metadata |= {"diffusers_config": json.dumps(configs), "modelspec.resolution": "64x64"}
    return metadata


def _write_header(
    file: BinaryIO, shapes: layouts.Shapes, dtype: tuple[str, int], metadata: dict[str, str]
) -> None:
    table: dict[str, Any] = {"__metadata__": metadata}
    name_of_dtype, width = dtype
    position = 0
    for name, shape in shapes.items():
        end = position + math.prod(shape) * width
        table[name] = {
            "dtype": name_of_dtype,
            "shape": list(shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the tensors
    file.write(struct.pack("<Q", len(text)) + text)


def _write_tensor(
    file: BinaryIO, name: str, shape: tuple[int, ...], dtype: str, random: np.random.Generator
) -> None:
    """Weights that keep a signal's size, so that no picture overflows."""
    is_norm = any(mark in name for mark in _NORMS)
    inputs = math.prod(shape[1:]) if len(shape) > 1 else 1
    count = math.prod(shape)
    for start in range(0, count, _PIECE):
        noise = random.standard_normal(min(_PIECE, count - start), dtype=np.float32)
        if len(shape) > 1:
            values = noise / np.sqrt(np.float32(inputs))
        else:
            values = noise * np.float32(0.02)
            if is_norm and name.endswith("weight"):
                values += np.float32(1)
        file.write(_encode(values, dtype))


def _encode(values: NDArray[np.float32], dtype: str) -> bytes:
    match dtype:
        case "f16":
            return values.astype(np.float16).tobytes()
        case "bf16":  # the upper half of a float32
            return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        case _:
            return values.tobytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--size", choices=("tiny", "full"), default="tiny")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="f16")
    parser.add_argument("--without", choices=tuple(_PARTS), nargs="*", default=[])
    parser.add_argument("--ema", action="store_true", help="carry the averaged UNet as well")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    path = make_checkpoint(
        options.out,
        options.kind,
        size=options.size,
        dtype=options.dtype,
        without=options.without,
        with_ema=options.ema,
        seed=options.seed,
    )
    print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
