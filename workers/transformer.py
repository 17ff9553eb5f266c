"""The transformer of SD 3 and 3.5: how it is steered and called."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdserve.generation import GenerationParams
from workers.denoising import Conditioning, Denoising
from workers.prompts import PromptEncoder


class TransformerDenoiser:
    """The Denoiser of models with an SD3Transformer2DModel."""

    def __init__(self, pipeline: Any, *, device: torch.device) -> None:
        self._pipeline = pipeline
        self.network: Any = pipeline.transformer
        self._prompts = PromptEncoder(pipeline, device, prompt_2=None, prompt_3=None)

    @property
    def dtype(self) -> torch.dtype:
        return self._pipeline.transformer.dtype

    def condition(self, params: GenerationParams) -> Conditioning:
        encoded = self._prompts.encode(
            params.prompt, params.negative_prompt, is_guided=params.guidance_scale > 1
        )
        return Conditioning(
            embeddings=encoded.embeddings, pooled=encoded.pooled, is_cached=encoded.is_cached
        )

    def start(self, noise: Tensor, *_: object) -> Tensor:
        return noise  # where a flow begins

    def canvas(self, *_: object) -> None:
        return None

    def predict(self, batch: Sequence[Denoising]) -> Sequence[Tensor]:
        conditionings = [denoising.conditioning for denoising in batch]
        rows = [len(conditioning.embeddings) for conditioning in conditionings]
        output: Tensor = self.network(
            hidden_states=torch.cat(
                [d.latents for d, count in zip(batch, rows, strict=True) for _ in range(count)]
            ),
            timestep=torch.cat(
                [
                    d.timesteps[d.calls_done].expand(count)
                    for d, count in zip(batch, rows, strict=True)
                ]
            ),
            encoder_hidden_states=torch.cat([c.embeddings for c in conditionings]),
            pooled_projections=torch.cat([c.pooled for c in conditionings if c.pooled is not None]),
            return_dict=False,
        )[0]
        return output.split(rows)

    def forget(self) -> None:
        self._prompts.forget()
