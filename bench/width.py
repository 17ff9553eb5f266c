"""Whether the measured width is worth it: pictures a second with it, one at a time, and always all.

    python -m bench.width [--models FILE ...] [--sides 64 128 256] [--pictures 24] [--blocks 3]

The engine alone, without Redis and HTTP, on one thread, has so many pictures to draw at once, with
the checkpoint's own steps, guidance and sampler. The three ways take turns, each block in the
reverse order of the one before. The measured width begins each time without any knowledge, so its
trials are in its figure. Prints Markdown.
"""

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

from bench.drawing import draw_queue, request
from sdserve.checkpoints import inspect_checkpoint
from sdserve.generation import GenerationParams
from workers.engine import DiffusionEngine
from workers.loading import load_engine
from workers.width import PAYS, Widths

DEMO_MODELS = Path(__file__).parent.parent / "demo_models"
BOUND = 4  # pictures
WAYS = {"one": 0.0, "measured": PAYS, "all": float("inf")}  # below which cost another one joins


def speed(engine: DiffusionEngine, asked: list[GenerationParams], widths: Widths) -> float:
    """Pictures a second."""
    begin = time.perf_counter()
    draw_queue(engine, asked, widths)
    return len(asked) / (time.perf_counter() - begin)


def compare(path: Path, sides: list[int], pictures: int, blocks: int, threads: int) -> None:
    """The rows of one checkpoint."""
    checkpoint, defaults = inspect_checkpoint(path)
    engine = load_engine(checkpoint, device="cpu", threads=threads, on_phase=lambda _: None)
    for side in sides:
        asked = [request(defaults, side, number) for number in range(pictures)]
        draw_queue(engine, asked[:BOUND], Widths(BOUND, pays_below=WAYS["all"]))  # warm
        speeds: dict[str, list[float]] = {way: [] for way in WAYS}
        chosen, curve = list[int](), list[float]()
        for block in range(blocks):
            for way in WAYS if block % 2 == 0 else reversed(WAYS):
                widths = Widths(BOUND, pays_below=WAYS[way])
                speeds[way].append(speed(engine, asked, widths))
                if way == "measured":
                    chosen.append(widths.known((side, side), 2))
                if way == "all":
                    curve = widths.curve((side, side), 2)
        one, measured, every = (statistics.median(speeds[way]) for way in WAYS)
        against = [
            statistics.median(m / o for m, o in zip(speeds["measured"], speeds[other], strict=True))
            for other in ("one", "all")
        ]
        steps = ", ".join(f"{1000 * seconds:.1f}" for seconds in curve)
        print(
            f"| {path.stem} | {side} | {steps} | {', '.join(map(str, chosen))} | {one:.2f} | "
            f"{measured:.2f} | {every:.2f} | {against[0]:.2f} | {against[1]:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--models", type=Path, nargs="+")
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 128, 256], help="pixels")
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options: Any = parser.parse_args()
    print(f"Load average {os.getloadavg()[0]:.1f}; up to {BOUND} together; pictures a second:\n")
    print(
        "| checkpoint | side | ms of a step with 1, 2, ... | width chosen | one | measured | all "
        "| measured / one | measured / all |"
    )
    print("| --- " * 9 + "|")
    for path in options.models or sorted(DEMO_MODELS.glob("*.safetensors")):
        compare(path, options.sides, options.pictures, options.blocks, options.threads)
    print(f"\nLoad average {os.getloadavg()[0]:.1f} at the end.")


if __name__ == "__main__":
    main()
