"""How far a picture in a batch is from the same picture alone, by sampler; and what rounding makes.

    python -m bench.rounding [--models FILE ...] [--seeds 1 2] [--steps 6 12 20]

In float32 on one thread. Each picture is denoised alone, with three others in its batch, and alone
from initial noise that is changed in its last bit. Both differences of the final latents are
relative to the largest latent; the table has the worst of all seeds and numbers of steps. Where the
two are alike, the batch costs nothing but rounding. Prints Markdown.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.drawing import request
from sdserve.checkpoints import inspect_checkpoint
from sdserve.generation import GenerationParams
from workers.denoising import Denoising
from workers.engine import DiffusionEngine
from workers.loading import load_engine

DEMO_MODELS = Path(__file__).parent.parent / "demo_models"
BIT = 2.0**-24  # half of what the last bit of a float32 is worth
OTHERS = 3


def finish(engine: DiffusionEngine, batch: list[Denoising]) -> Tensor:
    """The final latents of the first picture of a batch."""
    while not batch[0].is_done:
        engine.step(batch)
    return batch[0].latents


def differences(engine: DiffusionEngine, asked: GenerationParams) -> tuple[float, float]:
    """Of the picture in a batch, and of the picture from the changed noise, to it alone."""
    alone = finish(engine, [engine.begin(asked, 0)])
    others = [engine.begin(asked, number + 1) for number in range(OTHERS)]
    batched = finish(engine, [engine.begin(asked, 0), *others])
    changed = engine.begin(asked, 0)
    noise = torch.randn(changed.latents.shape, generator=torch.Generator().manual_seed(0))
    changed.latents = changed.latents * (1 + BIT * noise)
    rounded = finish(engine, [changed])
    largest = alone.abs().max()
    return float((batched - alone).abs().max() / largest), float(
        (rounded - alone).abs().max() / largest
    )


def compare(path: Path, seeds: list[int], steps: list[int]) -> None:
    """The rows of one checkpoint."""
    checkpoint, defaults = inspect_checkpoint(path)
    engine = load_engine(checkpoint, device="cpu", threads=1, on_phase=lambda _: None)
    for scheduler in defaults.schedulers:
        found = [
            differences(
                engine,
                replace(request(defaults, defaults.width, seed, steps=count), scheduler=scheduler),
            )
            for seed in seeds
            for count in steps
        ]
        batched, rounded = map(max, zip(*found, strict=True))
        print(f"| {path.stem} | {scheduler} | {batched:.1e} | {rounded:.1e} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--models", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[6, 12, 20])
    options: Any = parser.parse_args()
    print("| checkpoint | sampler | in a batch of four | last bit of the noise changed |")
    print("| --- " * 4 + "|")
    for path in options.models or sorted(DEMO_MODELS.glob("*.safetensors")):
        compare(path, options.seeds, options.steps)


if __name__ == "__main__":
    main()
