"""Files that lie in model folders beside checkpoints: refused by their own name. Headers only."""

import re
from collections.abc import Callable
from pathlib import Path

from sdserve.errors import UnsupportedCheckpointError
from sdserve.layout import CLIP_L, NETWORK, T5, VAE, Shapes, holds

DEPLOY_BASE = "deploy an SD 1.x, SD 2.x, SDXL or SD 3 base checkpoint instead"
USE_WHOLE = "use the full single-file checkpoint of the same model"
USE_INCLUDING_CLIPS = "use the '..._incl_clips' file of the same model"


def refuse_other_files(path: Path, shapes: Shapes) -> None:
    """Pass what may be a checkpoint.

    Raises:
        UnsupportedCheckpointError: it is something else.
    """
    for kind, advice, matches in _OTHER_KINDS:
        if any(matches(name) for name in shapes):
            raise UnsupportedCheckpointError(path, f"this is {kind}: {advice}.")
    if any(_FLUX(name) for name in shapes):
        raise UnsupportedCheckpointError(path, _flux(shapes))
    if any(_SCALED(name) for name in shapes):
        raise UnsupportedCheckpointError(
            path,
            "its weights are float8 with scales beside them, which is not served: use the float16 "
            "or bfloat16 file of the same model.",
        )
    if _is_embedding(shapes):
        raise UnsupportedCheckpointError(
            path, f"this is a textual-inversion embedding: {DEPLOY_BASE}."
        )
    if all(name.startswith(VAE) for name in shapes):
        raise UnsupportedCheckpointError(path, f"this is a bare VAE: {USE_WHOLE}.")
    if not holds(shapes, NETWORK):
        raise UnsupportedCheckpointError(
            path,
            "it is not a Stable Diffusion checkpoint (no 'model.diffusion_model' tensors): "
            "use a single-file checkpoint of SD 1.x, SD 2.x, SDXL or SD 3.",
        )


def _flux(shapes: Shapes) -> str:
    parts = {
        "the CLIP text encoder": (CLIP_L,),
        "the T5-XXL text encoder": (T5,),
        "the VAE": ("vae.", VAE),
    }
    lacking = [part for part, prefixes in parts.items() if not holds(shapes, *prefixes)]
    file = f"the file lacks {in_words(lacking)}, and " if lacking else ""
    return (
        f"this is a Flux model, which is not served: {file}the tokenizer of T5-XXL is not shipped "
        f"with sdserve: {DEPLOY_BASE}."
    )


def in_words(parts: list[str]) -> str:
    """E.g. `the VAE`, `a and b`, `a, b and c`."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _is_embedding(shapes: Shapes) -> bool:
    vectors = all(len(shape) <= 2 and shape[-1:] <= (2048,) for shape in shapes.values())
    return bool(
        {"emb_params", "clip_l", "clip_g", "<concept>"} & shapes.keys()
        or (len(shapes) <= 3 and vectors)
    )


_FLUX = re.compile(r"(model\.diffusion_model\.)?(double_blocks|single_transformer_blocks)\.").match
# ComfyUI's names. Without its scale such a weight is a wrong number; T5's may be, it is not read.
_SCALED = re.compile(
    rf"(?!{re.escape(T5)}).*\.(scaled_fp8|scale_weight|weight_scale|comfy_quant)$"
).match
# (What it is, next step, any tensor name that proves it.) Order matters: a LoRA of Flux is a LoRA
# first.
_OTHER_KINDS: tuple[tuple[str, str, Callable[[str], object]], ...] = (
    (
        "a LoRA, which only changes another model",
        DEPLOY_BASE,
        re.compile(r"lora_(unet|te\d?|up|down|A|B|prior)|\.(hada|lokr)_w1|\.lora\.").search,
    ),
    (
        "a ControlNet, which only steers another model",
        DEPLOY_BASE,
        re.compile(r"control_model\.|controlnet_|input_hint_block|zero_convs\.").match,
    ),
    ("an IP-Adapter", DEPLOY_BASE, re.compile(r"ip_adapter\.|image_proj\.").match),
    (
        "a model with an EDM noise schedule (Playground 2.5, CosXL)",
        f"this kind is not served, {DEPLOY_BASE}",
        re.compile(r"edm_(mean|std|vpred)").match,
    ),
    (
        "a bare transformer of SD 3, without text encoders and VAE",
        USE_INCLUDING_CLIPS,
        re.compile(r"joint_blocks\.").match,
    ),
    (
        "a bare VAE",
        USE_WHOLE,
        re.compile(r"(decoder|encoder)\.(conv_in|mid|mid_block)\.").match,
    ),
    (
        "a bare UNet in the diffusers layout",
        USE_WHOLE,
        re.compile(r"down_blocks\.0\.").match,
    ),
    (
        "a bare text encoder",
        USE_WHOLE,
        re.compile(r"text_model\.").match,
    ),
)
