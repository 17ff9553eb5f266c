"""The checkpoint families: what each one is, its native size, limits and defaults. Pure facts."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self


class Family(StrEnum):
    """What a checkpoint is, decided from its tensors."""

    SD1 = "sd1"
    SD2 = "sd2"  # epsilon prediction, 512 px
    SD2_V = "sd2-v"  # v prediction, 768 px
    SD2_TURBO = "sd2-turbo"  # distilled to 1..4 steps without guidance; SD2's tensors
    SDXL = "sdxl"
    SDXL_V = "sdxl-v"  # v prediction with zero terminal SNR
    SDXL_TURBO = "sdxl-turbo"  # same tensors as SDXL: only metadata or the name can tell

    @property
    def is_xl(self) -> bool:
        return self in (Family.SDXL, Family.SDXL_V, Family.SDXL_TURBO)


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """What a request gets when it does not say, and what it may ask for."""

    width: int  # pixels, the native size
    height: int
    steps: int
    guidance_scale: float
    scheduler: str  # a name of SCHEDULERS
    size_multiple: int  # width and height must be multiples of this many pixels
    min_size: int  # pixels per side
    max_size: int  # pixels per side

    def with_native_size(self, width: int, height: int) -> Self:
        """The same defaults for a checkpoint trained at another size.

        Half the native side is where pictures still hold together, twice is where they repeat
        themselves and memory runs out; sizes below 256 px are only for models made for them.
        """
        return replace(
            self,
            width=width,
            height=height,
            min_size=min(256, min(width, height) // 2),
            max_size=2 * max(width, height),
        )


def _square(
    native: int, *, steps: int, guidance_scale: float, scheduler: str
) -> GenerationDefaults:
    return GenerationDefaults(
        width=native,
        height=native,
        steps=steps,
        guidance_scale=guidance_scale,
        scheduler=scheduler,
        size_multiple=8,  # the VAE's factor; the UNet takes odd latents by itself
        min_size=256,
        max_size=2 * native,
    )


# Steps, guidance and sampler are what each model's authors and diffusers' pipelines recommend.
DEFAULTS: dict[Family, GenerationDefaults] = {
    Family.SD1: _square(512, steps=30, guidance_scale=7.5, scheduler="pndm"),
    Family.SD2: _square(512, steps=30, guidance_scale=7.5, scheduler="pndm"),
    Family.SD2_V: _square(768, steps=30, guidance_scale=7.5, scheduler="ddim"),
    Family.SD2_TURBO: _square(512, steps=4, guidance_scale=0.0, scheduler="euler"),
    Family.SDXL: _square(1024, steps=30, guidance_scale=5.0, scheduler="euler"),
    Family.SDXL_V: _square(1024, steps=30, guidance_scale=5.0, scheduler="euler"),
    Family.SDXL_TURBO: _square(512, steps=4, guidance_scale=0.0, scheduler="euler"),
}


# The samplers a request may name, with the diffusers class behind each and its extra configuration.
# DDIM and DDPM made from an SDXL config clip the latents by default, which ruins them: always off.
SCHEDULERS: dict[str, tuple[str, dict[str, object]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "deis": ("DEISMultistepScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpmpp_2m_sde_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "euler_karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
}

# Samplers that cannot take every number of steps: LCM distils 1000 timesteps into 50.
MAX_STEPS: dict[str, int] = {"lcm": 50}
