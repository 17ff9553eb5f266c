"""What a step cache saves and what it changes, on a CPU: the engine alone, intervals taking turns.

    python -m bench.step_cache [--models FILE ...] [--side N] [--steps N] [--intervals 1 2 3 5]
        [--blocks 5] [--precision float32] [--threads 1] [--pictures FOLDER]
    python -m bench.step_cache --count

For each interval the seconds of the denoising of one picture, as a ratio to interval 1 (median of
those within a block, and the range of all), the bytes that the picture keeps meanwhile, and the
PSNR of its pixels to the exact ones (of a random model that says nothing). Prints Markdown.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from bench.drawing import denoise, request
from sdserve.apps import Precision
from sdserve.checkpoints import inspect_checkpoint
from sdserve.families import Family
from workers.loading import load_engine
from workers.step_cache import run_and_keep, run_shallow

DEMO_MODELS = Path(__file__).parent.parent / "demo_models"
DIFFUSERS: Any = diffusers  # its names are lazy, type checkers see none of them


def compare(path: Path, options: Any) -> None:
    """The rows of one checkpoint."""
    checkpoint, defaults = inspect_checkpoint(path)
    engine = load_engine(
        checkpoint, device="cpu", threads=options.threads, precision=options.precision,
        on_phase=lambda _: None,
    )  # fmt: skip
    asked = request(defaults, options.side or defaults.width, 0, steps=options.steps)
    drawn = {
        interval: denoise(engine, replace(asked, step_cache=interval))  # warm
        for interval in options.intervals
    }
    seconds: dict[int, list[float]] = {interval: [] for interval in drawn}
    for block in range(options.blocks):
        for interval in drawn if block % 2 == 0 else reversed(drawn):
            begin = time.perf_counter()
            denoise(engine, replace(asked, step_cache=interval))
            seconds[interval].append(time.perf_counter() - begin)
    pixels = {interval: engine.decode(one) for interval, one in drawn.items()}
    first = options.intervals[0]
    for interval, denoising in drawn.items():
        ratios = [one / own for one, own in zip(seconds[first], seconds[interval], strict=True)]
        error = np.square(pixels[interval].astype(float) - pixels[first]).mean()
        likeness = f"{10 * np.log10(255**2 / error):.1f} dB" if error else "equal"
        kept = 0 if denoising.deep is None else denoising.deep.nbytes
        print(
            f"| {path.stem} | {asked.width} | {asked.num_inference_steps} | {interval} | "
            f"{statistics.median(seconds[interval]):.3f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | {kept / 1e6:.2f} | {likeness} |",
            flush=True,
        )
        if options.pictures:
            Image.fromarray(pixels[interval]).save(options.pictures / f"{path.stem}-{interval}.png")


def count() -> None:
    """FLOP of a whole and of a shallow call with guidance, in published dimensions. No weights."""
    print("| family | side | whole, TFLOP | shallow, TFLOP | shallow / whole |")
    print("| --- " * 5 + "|")
    for family, side, pooled in ((Family.SD1, 512, 0), (Family.SDXL, 1024, 1280)):
        text = (files("workers") / "configs" / f"{family}.json").read_text("utf-8")
        with torch.device("meta"):
            unet: Any = DIFFUSERS.UNet2DConditionModel.from_config(json.loads(text)["unet"])
            latents = torch.zeros(2, 4, side // 8, side // 8)
            rest: dict[str, Any] = {
                "encoder_hidden_states": torch.zeros(2, 77, unet.config.cross_attention_dim),
                "timestep_cond": None,
                "added_cond_kwargs": None,
            }
            if pooled:
                added = {"text_embeds": torch.zeros(2, pooled), "time_ids": torch.zeros(2, 6)}
                rest["added_cond_kwargs"] = added
            time = torch.zeros(2)
            with torch.no_grad():
                with FlopCounterMode(display=False) as whole:
                    _, deep = run_and_keep(unet, latents, time, **rest)
                with FlopCounterMode(display=False) as shallow:
                    run_shallow(unet, deep, latents, time, **rest)
        flops = [counter.get_total_flops() for counter in (whole, shallow)]
        print(
            f"| {family} | {side} | {flops[0] / 1e12:.3f} | {flops[1] / 1e12:.3f} | "
            f"{flops[1] / flops[0]:.3f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--models", type=Path, nargs="+")
    parser.add_argument("--side", type=int, help="pixels; default: the checkpoint's own")
    parser.add_argument("--steps", type=int, help="default: the checkpoint's own")
    parser.add_argument("--intervals", type=int, nargs="+", default=[1, 2, 3, 5])
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", type=Precision, default=Precision.AUTO)
    parser.add_argument("--pictures", type=Path, help="folder for PNGs")
    parser.add_argument("--count", action="store_true", help="only count FLOP, of real sizes")
    options: Any = parser.parse_args()
    if options.count:
        count()
        return
    print(f"Load average {os.getloadavg()[0]:.1f}:\n")
    print("| checkpoint | side | steps | interval | s | times as fast | MB kept | PSNR |")
    print("| --- " * 8 + "|")
    for path in options.models or sorted(DEMO_MODELS.glob("*.safetensors")):
        compare(path, options)
    print(f"\nLoad average {os.getloadavg()[0]:.1f} at the end.")


if __name__ == "__main__":
    main()
