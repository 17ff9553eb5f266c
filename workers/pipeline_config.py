"""The diffusers configuration of a checkpoint's parts, so that loading needs no hub.

It comes from the file's own metadata when it brings one (`diffusers_config`, as the demo models
do), else from the family's JSON in `workers/configs/`; what distinguishes the kinds of one family
is set here.
"""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from math import isqrt
from pathlib import Path
from typing import Any

from sdserve.errors import InvalidCheckpointError, UnsupportedCheckpointError
from sdserve.families import (
    SCHEDULERS,
    Distillation,
    Family,
    Kind,
    Prediction,
    defaults_of,
)
from sdserve.layout import GUIDANCE_EMBEDDING, NETWORK
from sdserve.safetensors_header import SafetensorsHeader

_FIRST = ("text_encoder", "tokenizer")
_SECOND = ("text_encoder_2", "tokenizer_2")
_PARTS = {
    Family.SD1: ("unet", *_FIRST),
    Family.SD2: ("unet", *_FIRST),
    Family.SDXL: ("unet", *_FIRST, *_SECOND),
    Family.SDXL_REFINER: ("unet", *_SECOND),
    Family.SD3: ("transformer", *_FIRST, *_SECOND),
    Family.SD35_MEDIUM: ("transformer", *_FIRST, *_SECOND),
    Family.SD35_LARGE: ("transformer", *_FIRST, *_SECOND),
}


def part_configs(path: Path, kind: Kind, header: SafetensorsHeader) -> dict[str, dict[str, Any]]:
    """The configuration of each part, by the name it has in a diffusers pipeline.

    Raises:
        InvalidCheckpointError: the file's own configuration is unusable.
        UnsupportedCheckpointError: the file's transformer has a shape that no SD 3 has.
    """
    own = header.metadata.get("diffusers_config")
    name = "sd3" if kind.family.is_sd3 else kind.family
    text = own or (files("workers") / "configs" / f"{name}.json").read_text("utf-8")
    classes = {SCHEDULERS[name][0] for name in defaults_of(kind).schedulers}
    try:
        table = json.loads(text)
        parts = ("vae", "scheduler", *_PARTS[kind.family])
        configs = {part: dict(table[part]) for part in parts}
        is_known = configs["scheduler"]["_class_name"] in classes
    except (KeyError, TypeError, ValueError):
        is_known, configs = False, {}
    if not is_known:
        raise InvalidCheckpointError(
            path,
            "the 'diffusers_config' in its metadata is not a complete configuration of a "
            f"{kind.family} model: export the file again.",
        )
    if kind.family.is_sd3:
        configs["transformer"] |= _transformer(path, header, configs["transformer"])
    else:
        configs["scheduler"] |= _scheduler(kind)
        configs["unet"] |= _unet(kind, header)
    return configs


def _transformer(
    path: Path, header: SafetensorsHeader, config: Mapping[str, Any]
) -> dict[str, Any]:
    """All that differs between the transformers of SD 3 and 3.5 shows in names and shapes."""
    shapes = {
        name.removeprefix(NETWORK): shape
        for name, shape in header.shapes.items()
        if name.startswith(NETWORK)
    }
    layers = [
        (int(found[1]), name)
        for name in shapes
        if (found := re.match(r"joint_blocks\.(\d+)\.", name))
    ]
    try:
        last = max(number for number, _ in layers)
        width, text_width = shapes["context_embedder.weight"]
        _, pooled_width = shapes["y_embedder.mlp.0.weight"]
        _, patches, _ = shapes["pos_embed"]
        heads = width // int(config["attention_head_dim"])
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise UnsupportedCheckpointError(
            path,
            "its transformer is not laid out as that of SD 3: use the full, unpruned checkpoint.",
        ) from error
    return {
        "num_layers": last + 1,
        "num_attention_heads": heads,
        "caption_projection_dim": width,
        "joint_attention_dim": text_width,
        "pooled_projection_dim": pooled_width,
        "pos_embed_max_size": isqrt(patches),
        "dual_attention_layers": sorted({number for number, name in layers if ".attn2." in name}),
        "qk_norm": "rms_norm" if any(".ln_q." in name for _, name in layers) else None,
    }


def _unet(kind: Kind, header: SafetensorsHeader) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if kind.is_inpainting:
        changes["in_channels"] = 9
    if kind.embeds_guidance:
        changes["time_cond_proj_dim"] = header.shapes[GUIDANCE_EMBEDDING][1]
    if kind.family is Family.SD2 and kind.prediction is Prediction.V:
        changes["upcast_attention"] = True  # its attention overflows in half precision
    return changes


def _scheduler(kind: Kind) -> dict[str, Any]:
    changes: dict[str, Any] = {"prediction_type": kind.prediction.value}
    has_zero_snr = kind.family is Family.SDXL and kind.prediction is Prediction.V
    if has_zero_snr:
        changes["rescale_betas_zero_snr"] = True
    if has_zero_snr or kind.distillation not in (None, Distillation.LCM):
        # Few steps must start at the very end of the noise, where "leading" does not.
        changes["timestep_spacing"] = "trailing"
    return changes
