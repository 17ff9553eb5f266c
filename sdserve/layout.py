"""Where the parts of a single file are: the beginnings of its tensors' names. Pure."""

from sdserve.families import Family

Shapes = dict[str, tuple[int, ...]]

NETWORK = "model.diffusion_model."  # what denoises
VAE = "first_stage_model."
CLIP_L = "text_encoders.clip_l."
CLIP_G = "text_encoders.clip_g."
T5 = "text_encoders.t5xxl."
# Where each family's text encoders are, in the order of the pipeline's text_encoder(_2).
TEXT_ENCODERS: dict[Family, tuple[str, ...]] = {
    Family.SD1: ("cond_stage_model.transformer.",),
    Family.SD2: ("cond_stage_model.model.",),
    Family.SDXL: ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
    Family.SDXL_REFINER: ("conditioner.embedders.0.model.",),
}
GUIDANCE_EMBEDDING = f"{NETWORK}time_embed.cond_proj.weight"  # [channels, width]

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
