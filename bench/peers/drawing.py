"""A picture by plain diffusers, as everybody's tutorial draws it: the maths of every peer."""

import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import diffusers
import torch
from typing_extensions import TypedDict  # pydantic reads this one in Python 3.11 too

from sdserve.checkpoints import inspect_checkpoint
from sdserve.families import SCHEDULERS
from tools.plain_pipeline import load_plainly


class Request(TypedDict):
    """What is asked of everyone, with nothing left open."""

    prompt: str
    num_inference_steps: int
    guidance_scale: float
    width: int  # pixels
    height: int
    seed: int


class Drawer:
    """A pipeline that draws one picture after the other."""

    def __init__(self, model: Path, threads: int) -> None:
        """Load.

        Args:
            model: the checkpoint, drawn with the scheduler that we take for it.
            threads: of torch.
        """
        torch.set_num_threads(threads)
        _, defaults = inspect_checkpoint(model)
        self._pipeline = load_plainly(model)
        name, options = SCHEDULERS[defaults.scheduler]
        self._pipeline.scheduler = getattr(diffusers, name).from_config(
            self._pipeline.scheduler.config, **options
        )
        self._lock = threading.Lock()  # a pipeline in two threads draws wrong pictures

    def draw(self, request: Request) -> Any:
        """The picture, of PIL."""
        generator = torch.Generator("cpu").manual_seed(request["seed"])
        with self._lock:
            return self._pipeline(
                prompt=request["prompt"],
                num_inference_steps=request["num_inference_steps"],
                guidance_scale=request["guidance_scale"],
                width=request["width"],
                height=request["height"],
                generator=generator,
            ).images[0]

    def draw_png(self, request: Request) -> bytes:
        """The picture as a PNG, at the level that we encode with: nobody loses by a default."""
        return png(self.draw(request))


def png(image: Any) -> bytes:
    """Level 1, as ours."""
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
