"""What the engine's benchmarks draw, and how: the engine alone, without Redis and HTTP."""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sdserve.families import GenerationDefaults
from sdserve.generation import GenerationParams, ImageFormat
from workers.denoising import Denoising
from workers.engine import DiffusionEngine
from workers.width import Widths


def request(
    defaults: GenerationDefaults, side: int, number: int, *, steps: int | None = None
) -> GenerationParams:
    """Picture `number` of a series: a square one with the checkpoint's own parameters."""
    return GenerationParams(
        prompt=f"a red circle on a blue background, {number}",
        negative_prompt="",
        num_inference_steps=steps or defaults.steps,
        guidance_scale=defaults.guidance_scale,
        width=side,
        height=side,
        seed=number,
        scheduler=defaults.scheduler,
        num_images=1,
        format=ImageFormat.PNG,
    )


def draw(engine: DiffusionEngine, asked: GenerationParams) -> NDArray[np.uint8]:
    """One picture, [H, W, 3]."""
    return engine.decode(denoise(engine, asked))


def denoise(engine: DiffusionEngine, asked: GenerationParams) -> Denoising:
    denoising = engine.begin(asked, 0)
    while not denoising.is_done:
        engine.step([denoising])
    return denoising


def draw_queue(engine: DiffusionEngine, asked: Sequence[GenerationParams], widths: Widths) -> None:
    """Pictures of one size as a replica draws them that has all of them in its queue."""
    waiting, active = list(reversed(asked)), list[Denoising]()
    size = asked[0].width, asked[0].height
    while waiting or active:
        while waiting and (not active or widths.has_room(size, [one.rows for one in active])):
            active.append(engine.begin(waiting.pop(), 0))
        rows = [one.rows for one in active]
        batch = active[: widths.together(size, rows)]
        start = time.perf_counter()
        is_fit = engine.step(batch)
        wait_for(engine)
        seconds = time.perf_counter() - start if is_fit else float("inf")
        widths.seen(size, rows[: len(batch)], seconds)
        for done in [one for one in active if one.is_done]:
            engine.decode(done)
            active.remove(done)


def wait_for(engine: DiffusionEngine) -> None:
    """Until the device has done all it was told to."""
    if engine.device.type == "cuda":
        import torch

        torch.cuda.synchronize(engine.device)
