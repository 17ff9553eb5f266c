"""The diffusion loop over a pipeline's parts: begin, step, decode. Knows no job, queue or clock."""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from numpy.typing import NDArray
from torch import Tensor

from sdserve.errors import OutOfMemoryError
from sdserve.families import SCHEDULERS, Family, Kind
from sdserve.generation import GenerationParams, ImageFormat
from workers.memory import memory_guard

Pipeline = StableDiffusionPipeline | StableDiffusionXLPipeline

# Aesthetic scores for the negative and the positive prompt, as the SDXL refiner was trained with.
_BAD_SCORE, _GOOD_SCORE = 2.5, 6.0
_PROMPTS_KEPT = 32  # embeddings in the cache; 0.6 MB each for SDXL in half precision


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What steers the UNet. R = 2 rows (negative, positive) with guidance, 1 row without."""

    embeddings: Tensor  # [R, 77, C], on device
    pooled: Tensor | None  # [R, P], on device; SDXL only
    # [R, 6], on device: original size, crop, target size; SDXL only. The refiner's are [R, 5]:
    # original size, crop, aesthetic score.
    time_ids: Tensor | None
    guidance: Tensor | None = None  # [1, G], on device; models that take guidance as an input


@dataclass(kw_only=True)
class Denoising:
    """One picture on its way from noise. Made by `begin`, moved on by `step`."""

    params: GenerationParams
    seed: int  # of this picture
    conditioning: Conditioning
    scheduler: Any  # its own object: schedulers carry the state of one picture
    step_options: dict[str, Any]  # what this scheduler's `step` takes besides
    timesteps: Tensor  # [T], on device; T may differ from num_inference_steps (PNDM, Heun)
    latents: Tensor  # [1, 4, H/8, W/8], on device
    canvas: Tensor | None = None  # [1, 5, H/8, W/8]: mask and masked picture, of inpainting models
    calls_done: int = 0  # UNet calls

    @property
    def is_done(self) -> bool:
        return self.calls_done == len(self.timesteps)

    @property
    def steps_done(self) -> int:
        """Progress in the steps that were asked for, 0..num_inference_steps."""
        return self.calls_done * self.params.num_inference_steps // len(self.timesteps)


class DiffusionEngine:
    """A loaded pipeline that denoises one or several pictures, step by step.

    Alone in its batch a picture is bit-exact with the plain diffusers pipeline at the same
    parameters; batched it agrees within float tolerance. Not thread-safe: one thread calls it.
    """

    def __init__(self, pipeline: Pipeline, *, kind: Kind, device: str) -> None:
        self._pipeline = pipeline
        self._kind = kind
        self._device = torch.device(device)
        self._encode = lru_cache(maxsize=_PROMPTS_KEPT)(self._encode_prompts)

    def begin(self, params: GenerationParams, image_index: int) -> Denoising:
        """Encode the prompts and draw the initial noise of image `image_index` of a request.

        Raises:
            OutOfMemoryError: the text encoders or the latents do not fit.
        """
        pipeline = self._pipeline
        with torch.inference_mode(), memory_guard(params.width, params.height):
            conditioning = self._condition(params)
            scheduler = self._scheduler(params.scheduler)
            scheduler.set_timesteps(params.num_inference_steps, device=self._device)
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(0)  # else the first step searches, and waits for the GPU
            seed = (params.seed + image_index) % 2**32
            generator = torch.Generator("cpu").manual_seed(seed)  # same noise on every device
            factor = pipeline.vae_scale_factor
            noise = torch.randn(
                (1, 4, params.height // factor, params.width // factor),
                generator=generator,
                dtype=conditioning.embeddings.dtype,
            ).to(self._device)
            latents = noise * scheduler.init_noise_sigma
            if self._kind.family is Family.SDXL_REFINER:
                # It refines an empty picture, at full strength: it was never shown pure noise.
                start = scheduler.timesteps[:1]
                latents = scheduler.add_noise(torch.zeros_like(noise), noise, start)
            accepted = inspect.signature(scheduler.step).parameters
            options = {"generator": generator, "eta": 0.0}
            return Denoising(
                params=params,
                seed=seed,
                conditioning=conditioning,
                scheduler=scheduler,
                step_options={name: options[name] for name in options if name in accepted},
                timesteps=scheduler.timesteps,
                latents=latents,
                canvas=self._canvas(params, generator) if self._kind.is_inpainting else None,
            )

    def step(self, batch: Sequence[Denoising]) -> None:
        """Move every picture one UNet call on, all in one forward; none of them may be done.

        The pictures must agree in size; all else may differ.

        Raises:
            OutOfMemoryError: even one picture alone does not fit.
        """
        params = batch[0].params
        try:
            with torch.inference_mode(), memory_guard(params.width, params.height):
                predictions = self._predict(batch)
        except OutOfMemoryError:
            if len(batch) == 1:
                raise
            predictions = None
        if predictions is None:  # outside the handler, whose traceback holds the failed tensors
            for denoising in batch:
                self.step([denoising])
            return
        with torch.inference_mode():
            for denoising, prediction in zip(batch, predictions, strict=True):
                denoising.latents = denoising.scheduler.step(
                    _guide(prediction, denoising.params.guidance_scale),
                    denoising.timesteps[denoising.calls_done],
                    denoising.latents,
                    **denoising.step_options,
                    return_dict=False,
                )[0]
                denoising.calls_done += 1

    def decode(self, denoising: Denoising) -> NDArray[np.uint8]:
        """The picture of the latents as they stand, [H, W, 3].

        Raises:
            OutOfMemoryError: the VAE does not fit, not even tile by tile.
        """
        params = denoising.params
        vae = self._pipeline.vae
        with torch.inference_mode(), memory_guard(params.width, params.height):
            latents = denoising.latents.to(vae.dtype) / vae.config.scaling_factor
            try:
                with memory_guard(params.width, params.height):
                    image = vae.decode(latents, return_dict=False)[0]
            except OutOfMemoryError:
                image = None
            if image is None:
                vae.enable_tiling()
                try:
                    image = vae.decode(latents, return_dict=False)[0]
                finally:
                    vae.disable_tiling()
            image = (image * 0.5 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).float()
            return (image * 255).round().to(torch.uint8).cpu().numpy()

    def synchronize(self) -> None:
        """Wait until the device has done all work so far, so that a clock read after it is true."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def warm(self) -> None:
        """One small picture in two steps: the first call of each part pays for its set-up."""
        params = GenerationParams(
            prompt="warm",
            negative_prompt="",
            num_inference_steps=1,
            guidance_scale=2.0,
            width=8 * self._pipeline.vae_scale_factor,
            height=8 * self._pipeline.vae_scale_factor,
            seed=0,
            scheduler="euler",
            num_images=1,
            format=ImageFormat.PNG,
        )
        denoising = self.begin(params, 0)
        while not denoising.is_done:
            self.step([denoising])
        self.decode(denoising)
        self._encode.cache_clear()

    def _predict(self, batch: Sequence[Denoising]) -> Sequence[Tensor]:
        """The UNet's output for each picture, [R, 4, H/8, W/8]."""
        inputs: list[Tensor] = []
        times: list[Tensor] = []
        for denoising in batch:
            rows = len(denoising.conditioning.embeddings)
            time = denoising.timesteps[denoising.calls_done]
            latents = torch.cat([denoising.latents] * rows)
            scaled = denoising.scheduler.scale_model_input(latents, time)
            if denoising.canvas is not None:
                scaled = torch.cat([scaled, torch.cat([denoising.canvas] * rows)], dim=1)
            inputs.append(scaled)
            times.append(time.expand(rows))
        conditionings = [denoising.conditioning for denoising in batch]
        pooled = [c.pooled for c in conditionings if c.pooled is not None]
        time_ids = [c.time_ids for c in conditionings if c.time_ids is not None]
        guidance = [c.guidance for c in conditionings if c.guidance is not None]
        output: Tensor = self._pipeline.unet(
            torch.cat(inputs),
            torch.cat(times),
            encoder_hidden_states=torch.cat([c.embeddings for c in conditionings]),
            timestep_cond=torch.cat(guidance) if guidance else None,
            added_cond_kwargs=(
                {"text_embeds": torch.cat(pooled), "time_ids": torch.cat(time_ids)}
                if pooled
                else None
            ),
            return_dict=False,
        )[0]
        return output.split([len(c.embeddings) for c in conditionings])

    def _condition(self, params: GenerationParams) -> Conditioning:
        is_guided = params.guidance_scale > 1 and not self._kind.embeds_guidance
        embeddings, pooled = self._encode(
            _plain(params.prompt), _plain(params.negative_prompt), is_guided
        )
        return Conditioning(
            embeddings=embeddings,
            pooled=pooled,
            time_ids=None if pooled is None else self._time_ids(params, embeddings),
            guidance=self._guidance(params, embeddings) if self._kind.embeds_guidance else None,
        )

    def _time_ids(self, params: GenerationParams, embeddings: Tensor) -> Tensor:
        size = (params.height, params.width)
        if self._kind.family is Family.SDXL_REFINER:
            scores = (_BAD_SCORE, _GOOD_SCORE)[-len(embeddings) :]
            rows = [[*size, 0, 0, score] for score in scores]
        else:
            rows = [[*size, 0, 0, *size]] * len(embeddings)
        return torch.tensor(rows, dtype=embeddings.dtype).to(self._device)

    def _guidance(self, params: GenerationParams, embeddings: Tensor) -> Tensor:
        # Its annotations are narrower than what it takes and gives; SD and SDXL share the formula.
        pipeline: Any = self._pipeline
        return pipeline.get_guidance_scale_embedding(
            torch.tensor([params.guidance_scale - 1]),
            embedding_dim=pipeline.unet.config.time_cond_proj_dim,
        ).to(device=self._device, dtype=embeddings.dtype)

    def _canvas(self, params: GenerationParams, generator: torch.Generator) -> Tensor:
        """What an inpainting model draws on: a mask over all of an empty picture."""
        vae = self._pipeline.vae
        empty = torch.zeros((1, 3, params.height, params.width), dtype=vae.dtype)
        posterior = vae.encode(empty.to(self._device)).latent_dist
        picture = posterior.sample(generator=generator) * vae.config.scaling_factor
        mask = torch.ones_like(picture[:, :1])
        return torch.cat([mask, picture], dim=1).to(self._pipeline.unet.dtype)

    def _encode_prompts(
        self,
        prompt: str,
        negative_prompt: str,
        is_guided: bool,  # noqa: FBT001 (a cache key)
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings [R, 77, C] and, for SDXL, pooled embeddings [R, P]."""
        pipeline: Any = self._pipeline  # its annotations are narrower than what it takes and gives
        positive, negative, *pooled = pipeline.encode_prompt(
            prompt,
            device=self._device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=is_guided,
            # None, not "": SDXL was trained with zeros for "no negative prompt".
            negative_prompt=negative_prompt or None,
        )
        embeddings: Tensor = torch.cat([negative, positive]) if is_guided else positive
        if not pooled:
            return embeddings, None
        pooled_positive, pooled_negative = pooled
        return embeddings, (
            torch.cat([pooled_negative, pooled_positive]) if is_guided else pooled_positive
        )

    def _scheduler(self, name: str) -> Any:
        class_name, options = SCHEDULERS[name]
        return getattr(diffusers, class_name).from_config(
            self._pipeline.scheduler.config, **options
        )


def _guide(prediction: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance of one picture: [R, ...] -> [1, ...]."""
    if len(prediction) == 1:
        return prediction
    negative, positive = prediction.chunk(2)
    return negative + scale * (positive - negative)


def _plain(text: str) -> str:
    """User text that cannot contain CLIP's control tokens: they would end the prompt early."""
    return re.sub(r"<\|(startoftext|endoftext)\|>", r"< |\1| >", text, flags=re.IGNORECASE)
