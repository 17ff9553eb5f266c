"""Files that lie in model folders beside checkpoints: refused by their own name. Headers only."""

import re
from collections.abc import Callable
from pathlib import Path

from sdserve.errors import UnsupportedCheckpointError
from sdserve.layout import CLIP_G, CLIP_L, NETWORK, T5, VAE, Shapes, holds

DEPLOY_BASE = "deploy an SD 1.x, SD 2.x or SDXL base checkpoint instead"
USE_WHOLE = "use the full single-file checkpoint of the same model"


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
    if any(_SD3(name) for name in shapes):
        raise UnsupportedCheckpointError(path, _sd3(shapes))
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
            "use a single-file checkpoint of SD 1.x, SD 2.x or SDXL.",
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


def _sd3(shapes: Shapes) -> str:
    parts = {
        "the CLIP-L text encoder": (CLIP_L,),
        "the CLIP-G text encoder": (CLIP_G,),
        "the VAE": (VAE,),
    }
    lacking = [part for part, prefixes in parts.items() if not holds(shapes, *prefixes)]
    file = f", and the file lacks {in_words(lacking)}" if lacking else ""
    return f"this is Stable Diffusion 3, which is not served{file}: {DEPLOY_BASE}."


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
_SD3 = re.compile(r"(model\.diffusion_model\.)?joint_blocks\.").match
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
