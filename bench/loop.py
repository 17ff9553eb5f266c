"""A loop without a server: plain diffusers, or our engine. What every server is held against.

    python -m bench.loop bare --model FILE [--threads 1]

Reads lines of JSON, each a list of requests (bench/peers/drawing.py), draws them one after the
other, and writes a line {"drawing": [seconds, ...], "encoding": [seconds, ...]}. A first line tells
that it is ready.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.peers.drawing import Request

Draw = Callable[[Request], tuple[float, float]]  # -> seconds of drawing, of encoding


def bare(model: Path, threads: int) -> Draw:
    """Plain diffusers."""
    from bench.peers.drawing import Drawer, png

    drawer = Drawer(model, threads)

    def draw(request: Request) -> tuple[float, float]:
        begin = time.perf_counter()
        image = drawer.draw(request)
        drawn = time.perf_counter()
        png(image)
        return drawn - begin, time.perf_counter() - drawn

    return draw


def engine(model: Path, threads: int) -> Draw:
    """Our engine, one picture at a time."""
    from sdserve.checkpoints import inspect_checkpoint
    from sdserve.generation import GenerationParams, ImageFormat
    from workers.images import encode_image
    from workers.loading import load_engine

    checkpoint, defaults = inspect_checkpoint(model)
    loaded = load_engine(checkpoint, device="cpu", threads=threads, on_phase=lambda _: None)

    def draw(request: Request) -> tuple[float, float]:
        params = GenerationParams(
            **request, negative_prompt="", scheduler=defaults.scheduler, num_images=1,
            format=ImageFormat.PNG,
        )  # fmt: skip
        begin = time.perf_counter()
        denoising = loaded.begin(params, 0)
        while not denoising.is_done:
            loaded.step([denoising])
        pixels = loaded.decode(denoising)
        drawn = time.perf_counter()
        encode_image(pixels, params.format, params, model=checkpoint.name, seed=params.seed)
        return drawn - begin, time.perf_counter() - drawn

    return draw


LOOPS = {"bare": bare, "engine": engine}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args()
    draw = LOOPS[options.loop](options.model, options.threads)
    print(json.dumps({"ready": options.loop}), flush=True)
    for line in sys.stdin:
        drawing, encoding = zip(*map(draw, json.loads(line)), strict=True)
        print(json.dumps({"drawing": drawing, "encoding": encoding}), flush=True)


if __name__ == "__main__":
    main()
