"""The layout for a GPU against diffusers' own: a step, and the VAE, in turns on one device.

    python -m bench.layout FILE [--device cpu] [--precision auto] [--side N] [--blocks 5]
        [--threads 1]

Seconds of one step of one picture, of its decode, and of the decode of two pictures in one call; as
the median ratio to the plain layout within a block, and the range. The VAE also in bfloat16, with
the PSNR of its picture to the plain one. Prints Markdown.
"""

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.drawing import denoise, request, wait_for
from sdserve.apps import Precision
from sdserve.checkpoints import inspect_checkpoint
from workers.engine import DiffusionEngine
from workers.fast_layout import lay_out
from workers.loading import load_engine

STEPS = 4  # until the latents that are decoded


def compare(options: Any) -> None:
    """The rows of one checkpoint."""
    checkpoint, defaults = inspect_checkpoint(options.file)
    plain = load_engine(
        checkpoint, device=options.device, threads=options.threads, precision=options.precision,
        exact=True, on_phase=lambda _: None,
    )  # fmt: skip
    parts: Any = vars(plain)["_pipeline"]

    def laid_out(vae: torch.dtype) -> DiffusionEngine:
        pipeline = copy.deepcopy(parts)
        lay_out(pipeline)
        pipeline.vae.to(vae)
        return DiffusionEngine(
            pipeline, kind=checkpoint.kind, device=options.device, is_exact=False
        )

    engines = {"plain": plain, "laid out": laid_out(parts.vae.dtype)}
    if parts.vae.dtype is not torch.bfloat16:
        engines["laid out, VAE in bfloat16"] = laid_out(torch.bfloat16)
    side = options.side or defaults.width
    drawn = denoise(plain, request(defaults, side, 0, steps=STEPS))

    def step(engine: DiffusionEngine) -> None:
        engine.step([engine.begin(drawn.params, 0)])

    def decode_two(engine: DiffusionEngine) -> None:
        vae: Any = vars(engine)["_pipeline"].vae
        with torch.inference_mode():
            vae.decode(torch.cat([drawn.latents] * 2).to(vae.dtype), return_dict=False)

    what = f"| {options.file.stem} | {side} |"
    pixels = {name: engine.decode(drawn).astype(float) for name, engine in engines.items()}
    errors = {name: np.square(one - pixels["plain"]).mean() for name, one in pixels.items()}
    likeness = {
        name: f"{10 * np.log10(255**2 / error):.1f} dB" if error else "equal"
        for name, error in errors.items()
    }
    in_turns(f"{what} step", step, engines, options.blocks, dict.fromkeys(engines, ""))
    in_turns(
        f"{what} decode", lambda engine: engine.decode(drawn), engines, options.blocks, likeness
    )
    in_turns(
        f"{what} decode of two", decode_two, engines, options.blocks, dict.fromkeys(engines, "")
    )


def in_turns(
    what: str,
    work: Callable[[DiffusionEngine], object],
    engines: dict[str, DiffusionEngine],
    blocks: int,
    remarks: dict[str, str],
) -> None:
    """A row for each engine."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for engine in engines.values():
        work(engine)  # warm
    for block in range(blocks):
        for name in engines if block % 2 == 0 else reversed(engines):
            wait_for(engines[name])
            begin = time.perf_counter()
            work(engines[name])
            wait_for(engines[name])
            seconds[name].append(time.perf_counter() - begin)
    for name in engines:
        ratios = [one / own for one, own in zip(seconds["plain"], seconds[name], strict=True)]
        print(
            f"{what} | {name} | {statistics.median(seconds[name]):.3f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | "
            f"{remarks[name]} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", type=Precision, default=Precision.AUTO)
    parser.add_argument("--side", type=int, help="pixels; default: the checkpoint's own")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options: Any = parser.parse_args()
    print(f"{options.device}, {options.precision}, load average {os.getloadavg()[0]:.1f}:\n")
    print("| checkpoint | side | what | layout | s | times as fast | PSNR |")
    print("| --- " * 7 + "|")
    compare(options)
    print(f"\nLoad average {os.getloadavg()[0]:.1f} at the end.")


if __name__ == "__main__":
    main()
