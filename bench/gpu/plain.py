"""Plain diffusers, in the way its documentation shows: the denominator of all ratios."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

from sdserve.apps import Precision
from sdserve.generation import GenerationParams
from tools.plain_pipeline import load_plainly

DIFFUSERS: Any = diffusers  # its names are lazy, type checkers see none of them


class Plain:
    """A pipeline on the device, with the sampler that our requests name."""

    def __init__(self, path: Path, *, device: str, precision: Precision) -> None:
        self._pipeline = load_plainly(path, getattr(torch, precision)).to(device)
        config = self._pipeline.scheduler.config
        self._pipeline.scheduler = DIFFUSERS.EulerDiscreteScheduler.from_config(config)

    def draw(self, asked: GenerationParams) -> Any:
        return self.draw_together([asked])[0]

    def draw_together(self, asked: Sequence[GenerationParams]) -> list[Any]:
        """Pictures that agree in all but prompt and seed, in one call."""
        first = asked[0]
        return self._pipeline(
            [one.prompt for one in asked],
            num_inference_steps=first.num_inference_steps,
            guidance_scale=first.guidance_scale,
            width=first.width,
            height=first.height,
            generator=[torch.Generator().manual_seed(one.seed) for one in asked],
        ).images
