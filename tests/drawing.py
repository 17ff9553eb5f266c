"""Checkpoints loaded and drawn with, without a server."""

from pathlib import Path
from typing import Any

import torch

from sdserve.checkpoints import inspect_checkpoint
from tests.values import params_for
from workers.engine import DiffusionEngine
from workers.loading import load_engine

PROMPT = "A red circle, on a BLUE background"


def load(path: Path) -> DiffusionEngine:
    checkpoint, _ = inspect_checkpoint(path)
    return load_engine(checkpoint, device="cpu", threads=1, on_phase=lambda _: None)


def draw(engine: DiffusionEngine, path: Path, **changes: Any) -> tuple[torch.Tensor, Any]:
    """The latents and the picture."""
    denoising = engine.begin(params_for(path, prompt=PROMPT, **changes), 0)
    while not denoising.is_done:
        engine.step([denoising])
    return denoising.latents, engine.decode(denoising)
