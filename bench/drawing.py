"""What the engine's benchmarks draw, and how: the engine alone, without Redis and HTTP."""

import time
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sdserve.families import GenerationDefaults
from sdserve.generation import GenerationParams, ImageFormat
from workers.denoising import Denoising
from workers.engine import DiffusionEngine
from workers.width import Widths

SLOTS = 8  # pictures at a time, at most: the default of --slots


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
    draw_arriving(engine, asked, [0.0] * len(asked), widths)


def draw_arriving(
    engine: DiffusionEngine,
    asked: Sequence[GenerationParams],
    due: Sequence[float],
    widths: Widths,
) -> list[float]:
    """Pictures of one size that are asked for one by one, as a replica draws them.

    Args:
        engine: what draws.
        asked: at least one.
        due: when each is asked for, in seconds from now, ascending.
        widths: what is known of batches, and learns.

    Returns:
        The seconds from when each was due to its picture.
    """
    coming = deque(enumerate(zip(asked, due, strict=True)))
    active, latencies = dict[int, Denoising](), [0.0] * len(asked)
    size, begin = (asked[0].width, asked[0].height), time.perf_counter()
    while coming or active:
        if not active:
            time.sleep(max(0.0, begin + coming[0][1][1] - time.perf_counter()))
        while coming and begin + coming[0][1][1] <= time.perf_counter():
            if active and not widths.has_room(size, [one.rows for one in active.values()]):
                break
            number, (params, _) = coming.popleft()
            active[number] = engine.begin(params, 0)
        if not active:
            continue  # woken a moment too early
        rows = [one.rows for one in active.values()]
        batch = list(active.values())[: widths.together(size, rows)]
        start = time.perf_counter()
        is_fit = engine.step(batch)
        wait_for(engine)
        seconds = time.perf_counter() - start if is_fit else float("inf")
        widths.seen(size, rows[: len(batch)], seconds)
        for number in [number for number, one in active.items() if one.is_done]:
            engine.decode(active.pop(number))
            latencies[number] = time.perf_counter() - begin - due[number]
    return latencies


def wait_for(engine: DiffusionEngine) -> None:
    """Until the device has done all it was told to."""
    if engine.device.type == "cuda":
        import torch

        torch.cuda.synchronize(engine.device)
