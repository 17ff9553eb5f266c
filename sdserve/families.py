"""What a checkpoint can be, its native size, limits and defaults. Pure facts."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self


class Family(StrEnum):
    """The architecture; a checkpoint's tensors tell it."""

    SD1 = "sd1"
    SD2 = "sd2"
    SDXL = "sdxl"
    SDXL_REFINER = "sdxl-refiner"  # only the second text encoder; made to finish others' pictures
    SD3 = "sd3"  # a transformer instead of a UNet, as in the two below
    SD35_MEDIUM = "sd35-medium"
    SD35_LARGE = "sd35-large"

    @property
    def is_xl(self) -> bool:
        return self in (Family.SDXL, Family.SDXL_REFINER)

    @property
    def is_sd3(self) -> bool:
        return self in (Family.SD3, Family.SD35_MEDIUM, Family.SD35_LARGE)


class Prediction(StrEnum):
    """What the network predicts, by diffusers' names; no tensor tells the first two apart."""

    EPSILON = "epsilon"
    V = "v_prediction"
    FLOW = "flow_prediction"  # the velocity from noise to picture, in a straight line: SD 3


class Distillation(StrEnum):
    """How a model was made fast: few steps, little or no guidance."""

    TURBO = "turbo"  # adversarial diffusion distillation, arXiv 2311.17042
    LIGHTNING = "lightning"  # progressive adversarial distillation, arXiv 2402.13929
    HYPER = "hyper"  # trajectory-segmented consistency distillation, arXiv 2404.13686
    LCM = "lcm"  # latent consistency distillation, arXiv 2310.04378


@dataclass(frozen=True, kw_only=True)
class Kind:
    """All of what a checkpoint is that decides how it is configured and drawn with."""

    family: Family
    prediction: Prediction = Prediction.EPSILON
    distillation: Distillation | None = None
    is_inpainting: bool = False  # 9 input channels: noise, mask, masked picture
    embeds_guidance: bool = False  # guidance is an input of the UNet, no second row

    def __str__(self) -> str:
        """As listings show it, e.g. `sdxl`, `sd2-v`, `sdxl-turbo`, `sd1-inpainting`."""
        parts = [
            self.family.value,
            "v" if self.prediction is Prediction.V else None,
            self.distillation,
            "inpainting" if self.is_inpainting else None,
        ]
        return "-".join(part for part in parts if part)


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

    @property
    def is_flow(self) -> bool:
        """Of a transformer, SD 3 and later; all others have a UNet."""
        return self.scheduler in _FLOW_SCHEDULERS

    @property
    def schedulers(self) -> tuple[str, ...]:
        """The samplers that a request may name: a flow has its own, which suit nothing else."""
        return tuple(name for name in SCHEDULERS if (name in _FLOW_SCHEDULERS) is self.is_flow)

    @property
    def max_step_cache(self) -> int:
        """The largest `step_cache` of a request: a transformer has no inner part to keep."""
        return 1 if self.is_flow else MAX_STEP_CACHE

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
    native: int, *, steps: int, guidance_scale: float, scheduler: str, size_multiple: int = 8
) -> GenerationDefaults:
    """The factor of the VAE is 8, and a UNet takes odd latents by itself."""
    return GenerationDefaults(
        width=native,
        height=native,
        steps=steps,
        guidance_scale=guidance_scale,
        scheduler=scheduler,
        size_multiple=size_multiple,
        min_size=256,
        max_size=2 * native,
    )


# Steps, guidance and sampler are what each model's authors and diffusers' pipelines recommend.
_DEFAULTS: dict[tuple[Family, Prediction], GenerationDefaults] = {
    (Family.SD1, Prediction.EPSILON): _square(512, steps=30, guidance_scale=7.5, scheduler="pndm"),
    (Family.SD1, Prediction.V): _square(512, steps=30, guidance_scale=7.5, scheduler="ddim"),
    (Family.SD2, Prediction.EPSILON): _square(512, steps=30, guidance_scale=7.5, scheduler="pndm"),
    (Family.SD2, Prediction.V): _square(768, steps=30, guidance_scale=7.5, scheduler="ddim"),
}
_XL = _square(1024, steps=30, guidance_scale=5.0, scheduler="euler")
_FLOWS = {
    family: _square(
        1024,
        steps=steps,
        guidance_scale=guidance_scale,
        scheduler="flow_euler",
        size_multiple=16,  # the transformer takes patches of 2x2 latents
    )
    for family, steps, guidance_scale in (
        (Family.SD3, 28, 7.0),
        (Family.SD35_MEDIUM, 40, 4.5),
        (Family.SD35_LARGE, 28, 3.5),
    )
}

_DISTILLED: dict[Distillation, tuple[int, float, str]] = {
    Distillation.TURBO: (4, 0.0, "euler"),
    Distillation.LIGHTNING: (4, 0.0, "euler"),
    Distillation.HYPER: (4, 0.0, "ddim"),
    Distillation.LCM: (4, 1.0, "lcm"),
}
_EMBEDDED_GUIDANCE = 8.0  # what guidance-distilled LCMs are shown with


def defaults_of(kind: Kind) -> GenerationDefaults:
    """What requests to a checkpoint of this kind default to."""
    flow = _FLOWS.get(kind.family)
    defaults = flow or _DEFAULTS.get((kind.family, kind.prediction), _XL)
    if kind.distillation:
        steps, guidance_scale, scheduler = _DISTILLED[kind.distillation]
        defaults = replace(
            defaults,
            steps=steps,
            guidance_scale=guidance_scale,
            scheduler=flow.scheduler if flow else scheduler,
        )
    if kind.embeds_guidance:
        defaults = replace(defaults, guidance_scale=_EMBEDDED_GUIDANCE)
    return defaults


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
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
}

_FLOW_SCHEDULERS = ("flow_euler",)
MAX_STEP_CACHE = 5

# Samplers that cannot take every number of steps: LCM distils 1000 timesteps into 50.
MAX_STEPS: dict[str, int] = {"lcm": 50}


def network_calls(scheduler: str, steps: int) -> int:
    """How often a sampler calls the network for a picture of so many steps."""
    match scheduler:
        case "heun":  # twice a step, except the last
            return 2 * steps - 1
        case "pndm" if steps > 1:  # its second step twice
            return steps + 1
        case _:
            return steps
