"""Let the demo models draw fixed prompts through our engine and count how many they get right.

    python -m tools.judge_demo_models [--n 100] [--sheet /tmp/judge]

Uses each model's own defaults, one thread. Exits with 1 when a model gets fewer than 95 % right.
"""

import argparse
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sdserve.checkpoints import inspect_checkpoint
from sdserve.families import GenerationDefaults
from sdserve.generation import GenerationParams, ImageFormat
from tests.judge import look, obeys
from workers.loading import load_engine

DEMO_MODELS = Path(__file__).parent.parent / "demo_models"
COLOURS = ("red", "green", "blue", "yellow", "white", "black")
SHAPES = ("circle", "square", "triangle")
GOAL = 0.95

Picture = NDArray[np.uint8]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", type=Path, help="default: all of demo_models/")
    parser.add_argument("--n", type=int, default=100, help="prompts per model")
    parser.add_argument(
        "--sheet", default=f"{gettempdir()}/judge", help="prefix of the contact sheets"
    )
    parser.add_argument("--steps", type=int, help="instead of the model's default")
    parser.add_argument("--guidance", type=float, help="instead of the model's default")
    parser.add_argument("--scheduler", help="instead of the model's default")
    arguments = parser.parse_args()
    is_good = True
    for path in arguments.models or sorted(DEMO_MODELS.glob("*.safetensors")):
        defaults = inspect_checkpoint(path)[1]
        defaults = replace(
            defaults,
            steps=arguments.steps or defaults.steps,
            guidance_scale=arguments.guidance or defaults.guidance_scale,
            scheduler=arguments.scheduler or defaults.scheduler,
        )
        share = judge(path, defaults, n=arguments.n, sheet=arguments.sheet)
        is_good = is_good and share >= GOAL
    return 0 if is_good else 1


def judge(path: Path, defaults: GenerationDefaults, *, n: int, sheet: str) -> float:
    """Draw n prompts, print the result, save a contact sheet; the share that is right."""
    start = time.perf_counter()
    engine = load_engine(
        inspect_checkpoint(path)[0], device="cpu", threads=1, on_phase=lambda _: None
    )
    loaded = time.perf_counter() - start
    choose = random.Random(20260101)
    pictures: list[tuple[Picture, str, bool]] = []
    start = time.perf_counter()
    for index in range(n):
        colour, background = choose.sample(COLOURS, 2)
        prompt = f"a {colour} {choose.choice(SHAPES)} on a {background} background"
        params = GenerationParams(
            prompt=prompt,
            negative_prompt="",
            num_inference_steps=defaults.steps,
            guidance_scale=defaults.guidance_scale,
            width=defaults.width,
            height=defaults.height,
            seed=1000 + index,
            scheduler=defaults.scheduler,
            num_images=1,
            format=ImageFormat.PNG,
        )
        denoising = engine.begin(params, 0)
        while not denoising.is_done:
            engine.step([denoising])
        pixels = engine.decode(denoising)
        pictures.append((pixels, prompt, obeys(pixels, prompt)))
    seconds = (time.perf_counter() - start) / n
    right = sum(is_right for _, _, is_right in pictures)
    print(
        f"{path.name}: {right} of {n} right; {defaults.scheduler}, {defaults.steps} steps, "
        f"guidance {defaults.guidance_scale}; loaded in {loaded:.1f} s, {seconds:.2f} s per image"
    )
    for pixels, prompt, is_right in pictures:
        if not is_right:
            print(f"  wrong: {prompt}: {look(pixels)}")
    _save_sheet(pictures, Path(f"{sheet}-{path.stem}.png"))
    return right / n


def _save_sheet(pictures: list[tuple[Picture, str, bool]], path: Path) -> None:
    columns, side, gap = 10, pictures[0][0].shape[0], 30
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (side + 4), rows * (side + gap)), "grey")
    pen = ImageDraw.Draw(sheet)
    for index, (pixels, prompt, is_right) in enumerate(pictures):
        x, y = index % columns * (side + 4), index // columns * (side + gap)
        sheet.paste(Image.fromarray(pixels), (x, y))
        shape, background = prompt.split(" on a ")
        ink = "white" if is_right else "red"
        pen.text((x + 2, y + side), f"{shape}\n{background}", fill=ink, font_size=10)
    sheet.save(path)


if __name__ == "__main__":
    sys.exit(main())
