"""What a checkpoint is, decided from its header.

Tensors come first: they cannot lie. What they leave open (prediction, distillation) the sidecar
tells, then ModelSpec metadata (Stability-AI/ModelSpec), then the file's name.
"""

import logging
import re
from pathlib import Path

from sdserve.errors import UnsupportedCheckpointError
from sdserve.families import Distillation, Family, Kind, Prediction
from sdserve.layout import (
    GUIDANCE_EMBEDDING,
    JOINT_BLOCKS,
    NETWORK,
    T5,
    Shapes,
    holds,
    missing_text_encoders,
)
from sdserve.other_files import DEPLOY_BASE, USE_WHOLE, refuse_other_files
from sdserve.safetensors_header import SafetensorsHeader
from sdserve.sidecar import Sidecar

logger = logging.getLogger(__name__)

_CONV_IN = f"{NETWORK}input_blocks.0.0.weight"  # [channels, inputs, 3, 3]
# Its second side is the text width.
_CROSS_ATTENTION = f"{NETWORK}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
# Of the published models: (UNet channels, text width). Own configurations may differ.
_SIZES = {
    Family.SD1: (320, 768),
    Family.SD2: (320, 1024),
    Family.SDXL: (320, 2048),
    Family.SDXL_REFINER: (384, 1280),
}


def detect(path: Path, header: SafetensorsHeader, sidecar: Sidecar) -> Kind:
    """What the checkpoint is. Reads nothing but its arguments.

    Raises:
        UnsupportedCheckpointError: it is something else, or of a kind that is not served.
    """
    shapes = header.shapes
    refuse_other_files(path, shapes)
    if holds(shapes, JOINT_BLOCKS):
        return _sd3(path, header, sidecar)
    family = _family(path, shapes, sidecar)
    inputs = shapes.get(_CONV_IN, (0, 0))[1]
    _refuse_unserved_unet(path, family, header, inputs)
    kind = Kind(
        family=family,
        prediction=_prediction(path, family, header, sidecar),
        distillation=_distillation(path, header, sidecar),
        is_inpainting=inputs == 9,
        embeds_guidance=GUIDANCE_EMBEDDING in shapes,
    )
    is_named_xl = "xl" in path.stem.lower()
    if is_named_xl != family.is_xl:
        logger.warning(
            "%s: its name %s 'xl', its tensors say %s: the tensors decide.",
            path,
            "has" if is_named_xl else "lacks",
            kind,
        )
    return kind


def _sd3(path: Path, header: SafetensorsHeader, sidecar: Sidecar) -> Kind:
    joint = [name for name in header.shapes if name.startswith(JOINT_BLOCKS)]
    if not any(".attn.ln_q." in name for name in joint):
        family = Family.SD3
    elif any(".attn2." in name for name in joint):
        family = Family.SD35_MEDIUM
    else:
        family = Family.SD35_LARGE
    _refuse_other_family(path, family, sidecar)
    if sidecar.prediction_type:
        raise UnsupportedCheckpointError(
            path,
            f"its sidecar sets 'prediction_type', which {family} does not have: remove it from "
            f"{path.stem}.yaml.",
        )
    logger.warning(
        "%s: prompts are read by the two CLIP text encoders only, %s.",
        path,
        "the T5-XXL in the file is left out" if holds(header.shapes, T5) else "there is no T5-XXL",
    )
    return Kind(
        family=family,
        prediction=Prediction.FLOW,
        distillation=_distillation(path, header, sidecar),
    )


def _family(path: Path, shapes: Shapes, sidecar: Sidecar) -> Family:
    context = shapes.get(_CROSS_ATTENTION, (0, 0))[1]
    by_size = {width: family for family, (_, width) in _SIZES.items()}
    # Families that share a prefix differ in having it all: the refiner lacks the base's first.
    family = next(
        (each for each in _SIZES if not missing_text_encoders(each, shapes)),
        by_size.get(context, sidecar.family),
    )
    if family is None or family.is_sd3:
        raise UnsupportedCheckpointError(
            path,
            "it has no text encoder, and nothing tells which family it is: "
            f"name the family in {path.stem}.yaml beside it, or {USE_WHOLE}.",
        )
    _refuse_other_family(path, family, sidecar)
    return family


def _refuse_other_family(path: Path, family: Family, sidecar: Sidecar) -> None:
    if sidecar.family not in (None, family):
        raise UnsupportedCheckpointError(
            path,
            f"its sidecar says {sidecar.family}, its tensors say {family}: correct "
            f"{path.stem}.yaml.",
        )


def _prediction(
    path: Path, family: Family, header: SafetensorsHeader, sidecar: Sidecar
) -> Prediction:
    if "v_pred" in header.shapes:  # an empty marker tensor, written by ComfyUI-style trainers
        return Prediction.V
    if sidecar.prediction_type:
        return sidecar.prediction_type
    if declared := header.metadata.get("modelspec.prediction_type", "").lower():
        return Prediction.V if declared.startswith("v") else Prediction.EPSILON
    name = path.stem.lower()
    if re.search(r"v[-_ ]?pred", name):
        return Prediction.V
    if family is not Family.SD2 or _distillation(path, header, sidecar) or _inpaints(header.shapes):
        return Prediction.EPSILON
    predicts_v = re.search(r"512|base", name) is None
    logger.warning(
        "%s: nothing in the file tells whether this SD 2 model predicts epsilon or v; taken as %s. "
        "If pictures come out as noise, say 'prediction_type: %s' in %s.yaml beside it.",
        path,
        "v (768 px)" if predicts_v else "epsilon (512 px)",
        "epsilon" if predicts_v else "v_prediction",
        path.stem,
    )
    return Prediction.V if predicts_v else Prediction.EPSILON


def _distillation(path: Path, header: SafetensorsHeader, sidecar: Sidecar) -> Distillation | None:
    if sidecar.distillation:
        return sidecar.distillation
    if GUIDANCE_EMBEDDING in header.shapes:
        return Distillation.LCM
    told = [header.metadata.get(f"modelspec.{key}", "") for key in ("architecture", "title")]
    text = " ".join([*told, path.stem]).lower()
    return next((kind for kind, mark in _DISTILLATION_MARKS if re.search(mark, text)), None)


def _inpaints(shapes: Shapes) -> bool:
    return shapes.get(_CONV_IN, (0, 0))[1] == 9


def _refuse_unserved_unet(
    path: Path, family: Family, header: SafetensorsHeader, inputs: int
) -> None:
    if inputs == 8:
        raise UnsupportedCheckpointError(
            path,
            "this is an instruct-pix2pix model (8 input channels), which is not served: "
            f"{DEPLOY_BASE}.",
        )
    if inputs not in (4, 9):
        raise UnsupportedCheckpointError(
            path,
            f"its UNet takes {inputs} input channels, no Stable Diffusion 1.x, 2.x or XL: "
            f"{DEPLOY_BASE}.",
        )
    if "diffusers_config" in header.metadata:
        return
    # A shrunken UNet would load into the wrong shapes unless it brings its own configuration.
    channels = header.shapes[_CONV_IN][0]
    width = header.shapes.get(_CROSS_ATTENTION, (0, 0))[1]
    if (channels, width) != _SIZES[family]:
        expected_channels, expected_width = _SIZES[family]
        raise UnsupportedCheckpointError(
            path,
            f"it is laid out as {family}, but its UNet is {channels} channels wide with a text "
            f"width of {width} (expected {expected_channels} and {expected_width}): distilled or "
            f"pruned variants are not served, {DEPLOY_BASE}.",
        )


_DISTILLATION_MARKS = (
    (Distillation.LIGHTNING, r"lightning"),
    (Distillation.HYPER, r"hyper[-_ ]?sd"),
    (Distillation.TURBO, r"turbo"),
    (Distillation.LCM, r"(?<![a-z])lcm(?![a-z])"),
)
