"""Where the parts of a single file are: the beginnings of its tensors' names. Pure."""

from sdserve.families import Family

Shapes = dict[str, tuple[int, ...]]

NETWORK = "model.diffusion_model."  # what denoises
VAE = "first_stage_model."
CLIP_L = "text_encoders.clip_l.transformer."
CLIP_G = "text_encoders.clip_g.transformer."
T5 = "text_encoders.t5xxl."
# Each family's text encoders, in the order of the pipeline's text_encoder(_2): where, and its name.
_CLIPS_OF_SD3 = {CLIP_L: "CLIP-L text encoder", CLIP_G: "CLIP-G text encoder"}
TEXT_ENCODERS: dict[Family, dict[str, str]] = {
    Family.SD1: {"cond_stage_model.transformer.": "text encoder"},
    Family.SD2: {"cond_stage_model.model.": "text encoder"},
    Family.SDXL: {
        "conditioner.embedders.0.transformer.": "CLIP-L text encoder",
        "conditioner.embedders.1.model.": "CLIP-G text encoder",
    },
    Family.SDXL_REFINER: {"conditioner.embedders.0.model.": "text encoder"},
    Family.SD3: _CLIPS_OF_SD3,
    Family.SD35_MEDIUM: _CLIPS_OF_SD3,
    Family.SD35_LARGE: _CLIPS_OF_SD3,
}
UNREAD = ("model_ema.", T5)  # of training; its tokenizer is not shipped
GUIDANCE_EMBEDDING = f"{NETWORK}time_embed.cond_proj.weight"  # [channels, width]
JOINT_BLOCKS = f"{NETWORK}joint_blocks."  # the layers of SD 3's transformer
POSITIONS = f"{NETWORK}pos_embed"  # of SD 3's patches: [1, side * side, width]

_VAE_MARK = "decoder.conv_in.weight"


def vae_prefix(shapes: Shapes) -> str | None:
    """What comes before the names of a VAE's tensors, in a checkpoint or in a file of its own."""
    return next((prefix for prefix in (VAE, "") if prefix + _VAE_MARK in shapes), None)


def missing_text_encoders(family: Family, shapes: Shapes) -> list[str]:
    """Prefixes of the family's text encoders that the file does not hold."""
    return [prefix for prefix in TEXT_ENCODERS[family] if not holds(shapes, prefix)]


def holds(shapes: Shapes, *prefixes: str) -> bool:
    """Whether the name of any tensor begins with one of the prefixes."""
    return any(name.startswith(prefixes) for name in shapes)
