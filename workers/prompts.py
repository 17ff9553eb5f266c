"""Prompts to embeddings, by a pipeline's own text encoders. Remembers the last ones."""

import re
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from workers.denoising import Pipeline

# On the device. In half precision a pair takes 0.3 MB for SD 1, 0.6 MB for SDXL, 5.5 MB for SD 3.
CACHE_BYTES = 64 << 20

# All that the embeddings of one checkpoint depend on.
_Key = tuple[str, str, bool]  # prompt, negative prompt, with guidance


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A pair of prompts. R = 2 rows (negative, positive) with guidance, 1 row without."""

    embeddings: Tensor  # [R, T, C], on device
    pooled: Tensor | None  # [R, P], on device; not for SD 1 and 2
    is_cached: bool = False  # it was encoded for an earlier picture

    @property
    def nbytes(self) -> int:
        return self.embeddings.nbytes + (0 if self.pooled is None else self.pooled.nbytes)


class PromptEncoder:
    """Encodes pairs of prompts. Not thread-safe: one thread calls it."""

    def __init__(
        self,
        pipeline: Pipeline,
        device: torch.device,
        *,
        cache_bytes: int = CACHE_BYTES,
        **more: None,
    ) -> None:
        """Be ready.

        Args:
            pipeline: whose encoders it uses.
            device: where they are, or are wanted.
            cache_bytes: of embeddings that are kept; the least recently used go first.
            more: further arguments of the pipeline's `encode_prompt`, to be left empty.
        """
        self._pipeline = pipeline
        self._device = device
        self._more = more
        self._room = cache_bytes
        self._kept = OrderedDict[_Key, Encoded]()  # the least recently used first

    def encode(self, prompt: str, negative_prompt: str, *, is_guided: bool) -> Encoded:
        """The embeddings of a pair, or those of the same pair before."""
        key = _plain(prompt), _plain(negative_prompt) if is_guided else "", is_guided
        if known := self._kept.get(key):
            self._kept.move_to_end(key)
            return known
        encoded = self._encode(key)
        self._kept[key] = replace(encoded, is_cached=True)
        self._room -= encoded.nbytes
        while self._room < 0:
            self._room += self._kept.popitem(last=False)[1].nbytes
        return encoded

    def forget(self) -> None:
        while self._kept:
            self._room += self._kept.popitem()[1].nbytes

    def _encode(self, key: _Key) -> Encoded:
        prompt, negative_prompt, is_guided = key
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
            return Encoded(embeddings=embeddings, pooled=None)
        pooled_positive, pooled_negative = pooled
        both = torch.cat([pooled_negative, pooled_positive]) if is_guided else pooled_positive
        return Encoded(embeddings=embeddings, pooled=both)


def _plain(text: str) -> str:
    """User text that cannot contain CLIP's control tokens: they would end the prompt early."""
    return re.sub(r"<\|(startoftext|endoftext)\|>", r"< |\1| >", text, flags=re.IGNORECASE)
