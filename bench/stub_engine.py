"""An engine that sleeps instead of drawing, to tell the server's cost from that of the maths.

A step takes a set time and no core; the picture is encoded for real, by who finishes the job.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from sdserve.generation import GenerationParams
from workers.denoising import Conditioning, Denoising
from workers.engine import DiffusionEngine


class StubEngine(DiffusionEngine):
    """Takes `step_seconds` for a step of any batch, and nothing for all else."""

    is_exact = False

    def __init__(self, step_seconds: float) -> None:
        self._step_seconds = step_seconds

    @property
    def precision(self) -> str:
        return "none"

    @property
    def compiled(self) -> int:
        return 0

    def begin(self, params: GenerationParams, image_index: int) -> Denoising:
        none = cast(Any, None)  # never looked at
        return Denoising(
            params=params,
            seed=(params.seed + image_index) % 2**32,
            conditioning=Conditioning(embeddings=torch.zeros(2, 1, 1), pooled=None),
            scheduler=none,
            step_options={},
            timesteps=torch.zeros(params.num_inference_steps),
            latents=none,
        )

    def step(self, batch: Sequence[Denoising]) -> bool:
        if self._step_seconds:
            time.sleep(self._step_seconds)
        for denoising in batch:
            denoising.calls_done += 1
        return True

    def decode(self, denoising: Denoising) -> NDArray[np.uint8]:
        return natural_picture(denoising.params.width, denoising.params.height, denoising.seed)


def loads(step_seconds: float) -> Callable[..., StubEngine]:
    """What a Puller takes as `load`."""
    return lambda *_arguments, **_options: StubEngine(step_seconds)


def natural_picture(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """Smooth shades with a little grain, [height, width, 3]: pure noise would not compress at all.

    A model's picture costs an encoder about as much as this one.
    """
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in draw.uniform(0.3, 2, (3, 3))]
    grain = draw.normal(0, 2, (height, width, 1))
    return np.clip(np.stack(waves, -1) * 90 + 128 + grain, 0, 255).astype(np.uint8)
