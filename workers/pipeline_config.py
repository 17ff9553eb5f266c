"""The diffusers configuration of a checkpoint's parts, so that loading needs no hub.

It comes from the file's own metadata when it brings one (`diffusers_config`, as the demo models
do), else from the family's JSON in `workers/configs/`; what distinguishes the kinds of one family
is set here.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from sdserve.errors import InvalidCheckpointError
from sdserve.families import SCHEDULERS, Distillation, Family, Kind, Prediction
from sdserve.layout import GUIDANCE_EMBEDDING
from sdserve.safetensors_header import SafetensorsHeader

_SCHEDULER_CLASSES = {class_name for class_name, _ in SCHEDULERS.values()}
_PARTS = {
    Family.SD1: ("text_encoder", "tokenizer"),
    Family.SD2: ("text_encoder", "tokenizer"),
    Family.SDXL: ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    Family.SDXL_REFINER: ("text_encoder_2", "tokenizer_2"),
}


def part_configs(path: Path, kind: Kind, header: SafetensorsHeader) -> dict[str, dict[str, Any]]:
    """The configuration of each part, by the name it has in a diffusers pipeline.

    Raises:
        InvalidCheckpointError: the file's own configuration is unusable.
    """
    own = header.metadata.get("diffusers_config")
    text = own or (files("workers") / "configs" / f"{kind.family}.json").read_text("utf-8")
    try:
        table = json.loads(text)
        parts = ("unet", "vae", "scheduler", *_PARTS[kind.family])
        configs = {part: dict(table[part]) for part in parts}
        is_known = configs["scheduler"]["_class_name"] in _SCHEDULER_CLASSES
    except (KeyError, TypeError, ValueError):
        is_known, configs = False, {}
    if not is_known:
        raise InvalidCheckpointError(
            path,
            "the 'diffusers_config' in its metadata is not a complete configuration of a "
            f"{kind.family} model: export the file again.",
        )
    configs["scheduler"] |= _scheduler(kind)
    configs["unet"] |= _unet(kind, header)
    return configs


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
