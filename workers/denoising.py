"""A picture on its way from noise, and what a network must be able to do to move it on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from torch import Tensor

from sdserve.generation import GenerationParams

Pipeline = StableDiffusionPipeline | StableDiffusionXLPipeline | StableDiffusion3Pipeline


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What steers the network. R = 2 rows (negative, positive) with guidance, 1 row without."""

    embeddings: Tensor  # [R, T, C], on device: 77 tokens, for SD 3 also 256 empty ones of T5
    pooled: Tensor | None  # [R, P], on device; SDXL and SD 3
    # [R, 6], on device: original size, crop, target size; SDXL only. The refiner's are [R, 5]:
    # original size, crop, aesthetic score.
    time_ids: Tensor | None = None
    guidance: Tensor | None = None  # [1, G], on device; models that take guidance as an input
    is_cached: bool = False  # the prompts were encoded for an earlier picture


@dataclass(kw_only=True)
class Denoising:
    """One picture on its way from noise. Made by `begin`, moved on by `step`."""

    params: GenerationParams
    seed: int  # of this picture
    conditioning: Conditioning
    scheduler: Any  # its own object: schedulers carry the state of one picture
    step_options: dict[str, Any]  # what this scheduler's `step` takes besides
    timesteps: Tensor  # [T], on device; T may differ from num_inference_steps (PNDM, Heun)
    latents: Tensor  # [1, L, H/8, W/8], on device; L = 4, for SD 3 16
    canvas: Tensor | None = None  # [1, 5, H/8, W/8]: mask and masked picture, of inpainting models
    # [R, C, H/8, W/8], on device: with a step cache, what the last full step kept
    deep: Tensor | None = None
    calls_done: int = 0  # of the network
    is_watched: bool = False  # the next step notes what it foresees
    foreseen: Tensor | None = None  # the latents without noise after such a step, as `latents`

    @property
    def rows(self) -> int:
        """Its part of the network's batch: 2 with guidance, 1 without."""
        return len(self.conditioning.embeddings)

    @property
    def is_shallow(self) -> bool:
        """The next call computes only the outer part of the network."""
        return self.calls_done % self.params.step_cache > 0

    @property
    def is_done(self) -> bool:
        return self.calls_done == len(self.timesteps)

    @property
    def steps_done(self) -> int:
        """Progress in the steps that were asked for, 0..num_inference_steps."""
        return self.calls_done * self.params.num_inference_steps // len(self.timesteps)


class Denoiser(Protocol):
    """The network of one architecture, with what its pipeline does around it."""

    network: Any  # what `predict` calls; another that takes and gives the same may take its place

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's weights."""
        ...

    def condition(self, params: GenerationParams) -> Conditioning:
        """Encode the prompts and whatever else of a request steers the network."""
        ...

    def start(self, noise: Tensor, scheduler: Any, /) -> Tensor:
        """The latents of the first step, like the noise [1, L, H/8, W/8]."""
        ...

    def canvas(self, params: GenerationParams, generator: torch.Generator, /) -> Tensor | None:
        """What an inpainting model draws on, [1, 5, H/8, W/8]; None for all others."""
        ...

    def predict(self, batch: Sequence[Denoising]) -> Sequence[Tensor]:
        """The network's output for each picture, [R, L, H/8, W/8], in one call.

        Pictures whose call is shallow go in one of their own.
        """
        ...

    def forget(self) -> None:
        """Drop the encoded prompts that are kept for the next request."""
        ...
