"""The UNet of SD 1.x, 2.x and XL: how it is steered and called."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdserve.families import Family, Kind
from sdserve.generation import GenerationParams
from workers.denoising import Conditioning, Denoising
from workers.prompts import PromptEncoder
from workers.step_cache import run_and_keep, run_shallow

# Aesthetic scores for the negative and the positive prompt, as the SDXL refiner was trained with.
_BAD_SCORE, _GOOD_SCORE = 2.5, 6.0


class UNetDenoiser:
    """The Denoiser of models with a UNet."""

    def __init__(self, pipeline: Any, *, kind: Kind, device: torch.device) -> None:
        self._pipeline = pipeline
        self.network: Any = pipeline.unet
        self._kind = kind
        self._device = device
        self._prompts = PromptEncoder(pipeline, device)

    @property
    def dtype(self) -> torch.dtype:
        return self._pipeline.unet.dtype

    def condition(self, params: GenerationParams) -> Conditioning:
        is_guided = params.guidance_scale > 1 and not self._kind.embeds_guidance
        encoded = self._prompts.encode(params.prompt, params.negative_prompt, is_guided=is_guided)
        embeddings, pooled = encoded.embeddings, encoded.pooled
        return Conditioning(
            embeddings=embeddings,
            pooled=pooled,
            time_ids=None if pooled is None else self._time_ids(params, embeddings),
            guidance=self._guidance(params, embeddings) if self._kind.embeds_guidance else None,
            is_cached=encoded.is_cached,
        )

    def start(self, noise: Tensor, scheduler: Any) -> Tensor:
        if self._kind.family is Family.SDXL_REFINER:
            # It refines an empty picture, at full strength: it was never shown pure noise.
            start = scheduler.timesteps[:1]
            return scheduler.add_noise(torch.zeros_like(noise), noise, start)
        return noise * scheduler.init_noise_sigma

    def canvas(self, params: GenerationParams, generator: torch.Generator) -> Tensor | None:
        """A mask over all of an empty picture."""
        if not self._kind.is_inpainting:
            return None
        vae = self._pipeline.vae
        empty = torch.zeros((1, 3, params.height, params.width), dtype=vae.dtype)
        posterior = vae.encode(empty.to(self._device)).latent_dist
        picture = posterior.sample(generator=generator) * vae.config.scaling_factor
        mask = torch.ones_like(picture[:, :1])
        return torch.cat([mask, picture], dim=1).to(self._pipeline.unet.dtype)

    def predict(self, batch: Sequence[Denoising]) -> Sequence[Tensor]:
        shallow = [denoising for denoising in batch if denoising.is_shallow]
        full = [denoising for denoising in batch if not denoising.is_shallow]
        outputs = {
            id(denoising): output
            for group, call in ((full, self._full), (shallow, self._shallow))
            if group
            for denoising, output in zip(group, call(group), strict=True)
        }
        return [outputs[id(denoising)] for denoising in batch]

    def _full(self, batch: Sequence[Denoising]) -> Sequence[Tensor]:
        rows = [denoising.rows for denoising in batch]
        arguments, options = self._inputs(batch)
        if all(denoising.params.step_cache == 1 for denoising in batch):
            output: Tensor = self.network(*arguments, **options, return_dict=False)[0]
            return output.split(rows)
        # What is compiled gives the output alone.
        output, deep = run_and_keep(self._pipeline.unet, *arguments, **options)
        for denoising, part in zip(batch, deep.split(rows), strict=True):
            if denoising.params.step_cache > 1:
                denoising.deep = part.clone()  # a view would hold those of the whole batch
        return output.split(rows)

    def _shallow(self, batch: Sequence[Denoising]) -> Sequence[Tensor]:
        arguments, options = self._inputs(batch)
        deep = torch.cat([denoising.deep for denoising in batch if denoising.deep is not None])
        output = run_shallow(self._pipeline.unet, deep, *arguments, **options)
        return output.split([denoising.rows for denoising in batch])

    def _inputs(self, batch: Sequence[Denoising]) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
        """The UNet's arguments for these pictures: in order, and by name."""
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
        # Contiguous: one order of strides, whatever the samplers made of the network's, so that a
        # compiled network meets one kind of arguments.
        return (torch.cat(inputs).contiguous(), torch.cat(times)), {
            "encoder_hidden_states": torch.cat([c.embeddings for c in conditionings]),
            "timestep_cond": torch.cat(guidance) if guidance else None,
            "added_cond_kwargs": (
                {"text_embeds": torch.cat(pooled), "time_ids": torch.cat(time_ids)}
                if pooled
                else None
            ),
        }

    def forget(self) -> None:
        self._prompts.forget()

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
