"""A checkpoint on disk: what it is, decided from its tensors. Reads the header only; no torch."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sdserve.errors import CheckpointError, UnsupportedCheckpointError
from sdserve.families import DEFAULTS, SCHEDULERS, Family, GenerationDefaults
from sdserve.safetensors_header import SafetensorsHeader, read_header

logger = logging.getLogger(__name__)

_UNET = "model.diffusion_model."
_CONV_IN = f"{_UNET}input_blocks.0.0.weight"  # [channels, 4, 3, 3]
_VAE = "first_stage_model.decoder.conv_in.weight"
_CROSS_ATTENTION = f"{_UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"  # [_, context]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A file that can be served. Equal values mean the same, unchanged file."""

    path: Path  # absolute; a link keeps its own name, its target may be a hash
    family: Family
    size: int  # bytes
    mtime_ns: int

    @property
    def name(self) -> str:
        return self.path.stem


def inspect_checkpoint(path: Path) -> tuple[Checkpoint, GenerationDefaults]:
    """What the file is and what its requests default to: tensors first, then metadata, then name.

    Raises:
        CheckpointNotFoundError: no file at this path.
        InvalidCheckpointError: not a complete, well-formed .safetensors file.
        UnsupportedCheckpointError: a well-formed file of a kind that is not served.
        CheckpointError: a file that cannot be read.
    """
    path = path.parent.resolve() / path.name
    header = read_header(path)
    family = _family(path, header)
    is_named_xl = "xl" in path.stem.lower()
    if is_named_xl != family.is_xl:
        logger.warning(
            "%s: its name %s 'xl', its tensors say %s: the tensors decide.",
            path,
            "has" if is_named_xl else "lacks",
            family.value,
        )
    stat = path.stat()
    checkpoint = Checkpoint(path=path, family=family, size=stat.st_size, mtime_ns=stat.st_mtime_ns)
    return checkpoint, _defaults(path, family, header.metadata)


def list_checkpoints(folder: Path) -> list[Path]:
    """The .safetensors files directly inside a folder, sorted by name.

    Raises:
        CheckpointError: no such folder, or one that cannot be read.
    """
    try:
        entries = sorted(folder.iterdir())
    except FileNotFoundError:
        raise CheckpointError(
            folder, "there is no such folder: create it and put .safetensors files in it."
        ) from None
    except NotADirectoryError:
        raise CheckpointError(folder, "this is a file: name the folder it lies in.") from None
    except PermissionError:
        raise CheckpointError(
            folder, f"this process may not list it: allow it, e.g. chmod a+rx '{folder}'."
        ) from None
    return [path for path in entries if path.suffix == ".safetensors" and not path.is_dir()]


def _family(path: Path, header: SafetensorsHeader) -> Family:
    shapes = header.shapes
    for kind, advice, matches in _OTHER_KINDS:
        if any(matches(name) for name in shapes):
            raise UnsupportedCheckpointError(path, f"this is {kind}: {advice}.")
    if _is_embedding(shapes):
        raise UnsupportedCheckpointError(
            path, f"this is a textual-inversion embedding: {_DEPLOY_BASE}."
        )
    if all(name.startswith("first_stage_model.") for name in shapes):
        raise UnsupportedCheckpointError(path, f"this is a bare VAE: {_WHOLE}.")
    if not any(name.startswith(_UNET) for name in shapes):
        raise UnsupportedCheckpointError(
            path,
            "it is not a Stable Diffusion checkpoint (no 'model.diffusion_model' tensors): "
            "use a single-file checkpoint of SD 1.x, SD 2.x or SDXL.",
        )
    has_text_encoder = any(
        name.startswith(("cond_stage_model.", "conditioner.")) for name in shapes
    )
    if not has_text_encoder:
        raise UnsupportedCheckpointError(
            path,
            f"this is a bare UNet without text encoder: {_WHOLE}.",
        )
    if _VAE not in shapes:
        raise UnsupportedCheckpointError(
            path,
            f"it has no VAE: {_WHOLE}, not the 'no VAE' file.",
        )
    _refuse_unserved_unet(path, shapes)
    family = _text_to_image_family(path, header)
    _refuse_unknown_size(path, family, header)
    return family


def _text_to_image_family(path: Path, header: SafetensorsHeader) -> Family:
    shapes, name = header.shapes, path.stem.lower()
    told = " ".join(
        header.metadata.get(f"modelspec.{key}", "") for key in ("architecture", "title")
    ).lower()
    is_distilled = re.search(r"turbo|lightning|hyper[-_ ]?sd", f"{told} {name}") is not None
    predicts_v = _predicts_v(shapes, header.metadata, name)
    if any(key.startswith("conditioner.embedders.1.") for key in shapes):
        if is_distilled:
            return Family.SDXL_TURBO
        return Family.SDXL_V if predicts_v else Family.SDXL
    if any(key.startswith("conditioner.") for key in shapes):
        raise UnsupportedCheckpointError(
            path,
            "this is the SDXL refiner, which only improves pictures: refiners are not served yet, "
            f"{_DEPLOY_BASE}.",
        )
    if any(key.startswith("cond_stage_model.model.") for key in shapes):
        if is_distilled:
            return Family.SD2_TURBO
        if predicts_v is None:
            predicts_v = re.search(r"512|base", name) is None
            logger.warning(
                "%s: nothing in the file tells whether this SD 2 model predicts epsilon or v; "
                "taken as %s. If pictures come out as noise, put '%s' in its name.",
                path,
                "v (768 px)" if predicts_v else "epsilon (512 px)",
                "512-base" if predicts_v else "v-pred",
            )
        return Family.SD2_V if predicts_v else Family.SD2
    if predicts_v:
        raise UnsupportedCheckpointError(
            path,
            "this is an SD 1.x model with v prediction, which is not served yet: "
            "use one with epsilon prediction.",
        )
    return Family.SD1


def _predicts_v(
    shapes: dict[str, tuple[int, ...]], metadata: dict[str, str], name: str
) -> bool | None:
    """Whether the UNet predicts v rather than epsilon; None when nothing tells."""
    if "v_pred" in shapes:  # an empty marker tensor, written by ComfyUI-style trainers
        return True
    if declared := metadata.get("modelspec.prediction_type", "").lower():
        return declared.startswith("v")
    return True if re.search(r"v[-_ ]?pred", name) else None


def _refuse_unserved_unet(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    channels = shapes.get(_CONV_IN, (0, 0))[1]
    if channels == 9:
        raise UnsupportedCheckpointError(
            path,
            "this is an inpainting model (9 input channels), which is not served yet: "
            f"{_DEPLOY_BASE}.",
        )
    if channels == 8:
        raise UnsupportedCheckpointError(
            path,
            "this is an instruct-pix2pix model (8 input channels), which is not served yet: "
            f"{_DEPLOY_BASE}.",
        )
    if channels != 4:
        raise UnsupportedCheckpointError(
            path,
            f"its UNet takes {channels} input channels, no Stable Diffusion 1.x, 2.x or XL: "
            f"{_DEPLOY_BASE}.",
        )


def _refuse_unknown_size(path: Path, family: Family, header: SafetensorsHeader) -> None:
    """A shrunken UNet would load into the wrong shapes unless it brings its own configuration."""
    if "diffusers_config" in header.metadata:
        return
    context = 2048 if family.is_xl else 768 if family is Family.SD1 else 1024
    channels = header.shapes[_CONV_IN][0]
    width = header.shapes.get(_CROSS_ATTENTION, (0, 0))[1]
    if (channels, width) != (320, context):
        raise UnsupportedCheckpointError(
            path,
            f"it is laid out as {family.value}, but its UNet is {channels} channels wide with a "
            f"text width of {width} (expected 320 and {context}): distilled or pruned variants "
            f"are not served yet, {_DEPLOY_BASE}.",
        )


def _is_embedding(shapes: dict[str, tuple[int, ...]]) -> bool:
    vectors = all(len(shape) <= 2 and shape[-1:] <= (2048,) for shape in shapes.values())
    return bool(
        {"emb_params", "clip_l", "clip_g", "<concept>"} & shapes.keys()
        or (len(shapes) <= 3 and vectors)
    )


def _defaults(path: Path, family: Family, metadata: dict[str, str]) -> GenerationDefaults:
    """The family's defaults, bent by what the file says of its size and by our own keys."""
    defaults = DEFAULTS[family]
    if declared := metadata.get("modelspec.resolution"):
        size = re.fullmatch(r"(\d{2,4})x(\d{2,4})", declared)
        sides = (int(size[1]), int(size[2])) if size else (0, 0)
        if min(sides) < 64 or any(side % defaults.size_multiple for side in sides):
            logger.warning(
                "%s: modelspec.resolution '%s' ignored, it is no size such as 1024x1024.",
                path,
                declared,
            )
        else:
            defaults = defaults.with_native_size(*sides)
    elif family is Family.SDXL_TURBO and not re.match(r"sd_?xl_?turbo", path.stem.lower()):
        # Only Stability's own SDXL Turbo is a 512 px model; what others call turbo is 1024.
        defaults = defaults.with_native_size(1024, 1024)
    try:
        if steps := metadata.get("sdserve.steps"):
            defaults = replace(defaults, steps=int(steps))
        if guidance := metadata.get("sdserve.guidance_scale"):
            defaults = replace(defaults, guidance_scale=float(guidance))
    except ValueError:
        raise UnsupportedCheckpointError(
            path, "its metadata key 'sdserve.steps' or 'sdserve.guidance_scale' is not a number."
        ) from None
    if scheduler := metadata.get("sdserve.scheduler"):
        if scheduler not in SCHEDULERS:
            raise UnsupportedCheckpointError(
                path, f"its metadata key 'sdserve.scheduler' names no known one: '{scheduler}'."
            )
        defaults = replace(defaults, scheduler=scheduler)
    return defaults


_DEPLOY_BASE = "deploy an SD 1.x, SD 2.x or SDXL base checkpoint instead"
_WHOLE = "use the full single-file checkpoint of the same model"
_NOT_YET = f"this kind is not served yet, {_DEPLOY_BASE}"

# Kinds of files that lie in model folders beside checkpoints: (what it is, next step, any tensor
# name that proves it). Order matters: a LoRA of Flux is a LoRA first.
_OTHER_KINDS: tuple[tuple[str, str, Callable[[str], object]], ...] = (
    (
        "a LoRA, which only changes another model",
        _DEPLOY_BASE,
        re.compile(r"lora_(unet|te\d?|up|down|A|B|prior)|\.(hada|lokr)_w1|\.lora\.").search,
    ),
    (
        "a ControlNet, which only steers another model",
        _DEPLOY_BASE,
        re.compile(r"control_model\.|controlnet_|input_hint_block|zero_convs\.").match,
    ),
    ("an IP-Adapter", _DEPLOY_BASE, re.compile(r"ip_adapter\.|image_proj\.").match),
    (
        "Stable Diffusion 3",
        _NOT_YET,
        re.compile(r"(model\.diffusion_model\.)?joint_blocks\.").match,
    ),
    (
        "a Flux model",
        _NOT_YET,
        re.compile(r"(model\.diffusion_model\.)?(double_blocks|single_transformer_blocks)\.").match,
    ),
    (
        "a model with an EDM noise schedule (Playground 2.5, CosXL)",
        _NOT_YET,
        re.compile(r"edm_(mean|std|vpred)").match,
    ),
    (
        "a guidance-distilled LCM UNet",
        _NOT_YET,
        re.compile(r"model\.diffusion_model\.time_embed\.cond_proj").match,
    ),
    (
        "a bare VAE",
        _WHOLE,
        re.compile(r"(decoder|encoder)\.(conv_in|mid|mid_block)\.").match,
    ),
    (
        "a bare UNet in the diffusers layout",
        _WHOLE,
        re.compile(r"down_blocks\.0\.").match,
    ),
    (
        "a bare text encoder",
        _WHOLE,
        re.compile(r"text_model\.").match,
    ),
)
