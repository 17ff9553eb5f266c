"""Prompts to embeddings, by a pipeline's own text encoders. Remembers the last ones."""

import re
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from workers.denoising import Pipeline

_PROMPTS_KEPT = 16  # pairs; in half precision 0.6 MB each for SDXL, 5.5 MB for SD 3


class PromptEncoder:
    """Encodes pairs of prompts. Not thread-safe: one thread calls it."""

    def __init__(self, pipeline: Pipeline, device: torch.device, **more: None) -> None:
        """`more` names further arguments of the pipeline's `encode_prompt` to be left empty."""
        self._pipeline = pipeline
        self._device = device
        self._more = more
        self._cached = lru_cache(maxsize=_PROMPTS_KEPT)(self._encode)

    def encode(
        self, prompt: str, negative_prompt: str, *, is_guided: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings [R, T, C] and, but for SD 1 and 2, pooled embeddings [R, P], on device.

        R = 2 rows (negative, positive) with guidance, 1 row without.
        """
        return self._cached(_plain(prompt), _plain(negative_prompt), is_guided)

    def forget(self) -> None:
        self._cached.cache_clear()

    def _encode(
        self,
        prompt: str,
        negative_prompt: str,
        is_guided: bool,  # noqa: FBT001 (a cache key)
    ) -> tuple[Tensor, Tensor | None]:
        pipeline: Any = self._pipeline  # its annotations are narrower than what it takes and gives
        positive, negative, *pooled = pipeline.encode_prompt(
            prompt,
            device=self._device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=is_guided,
            # None, not "": SDXL was trained with zeros for "no negative prompt".
            negative_prompt=negative_prompt or None,
            **self._more,
        )
        embeddings: Tensor = torch.cat([negative, positive]) if is_guided else positive
        if not pooled:
            return embeddings, None
        pooled_positive, pooled_negative = pooled
        return embeddings, (
            torch.cat([pooled_negative, pooled_positive]) if is_guided else pooled_positive
        )


def _plain(text: str) -> str:
    """User text that cannot contain CLIP's control tokens: they would end the prompt early."""
    return re.sub(r"<\|(startoftext|endoftext)\|>", r"< |\1| >", text, flags=re.IGNORECASE)
