"""An engine that draws nothing, at once, and misbehaves on request."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from sdserve.generation import GenerationParams
from workers.denoising import Conditioning, Denoising
from workers.engine import DiffusionEngine

OnStep = Callable[[GenerationParams], None]


class FakeEngine(DiffusionEngine):
    """Calls `on_step` with a picture's parameters before each of its steps."""

    def __init__(self, on_step: OnStep) -> None:
        self._on_step = on_step

    @property
    def precision(self) -> str:
        return "float32"

    @property
    def compiled(self) -> int:
        return 0

    def begin(self, params: GenerationParams, image_index: int) -> Denoising:
        none = cast(Any, None)  # never looked at
        return Denoising(
            params=params,
            seed=params.seed + image_index,
            conditioning=Conditioning(embeddings=torch.zeros(2, 1, 1), pooled=None),
            scheduler=none,
            step_options={},
            timesteps=torch.zeros(params.num_inference_steps),
            latents=none,
        )

    def step(self, batch: Sequence[Denoising]) -> bool:
        for denoising in batch:
            self._on_step(denoising.params)
            denoising.calls_done += 1
        return True

    def decode(self, denoising: Denoising) -> NDArray[np.uint8]:
        return np.zeros((denoising.params.height, denoising.params.width, 3), np.uint8)


def loads(on_step: OnStep) -> Callable[..., FakeEngine]:
    """What a Puller takes as `load`."""
    return lambda *_args, **_options: FakeEngine(on_step)
