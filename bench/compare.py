"""Us beside others, on the same checkpoint, in one run: S1, one warm client, and saturation.

    python -m bench compare [--blocks 5] [--requests 6] [--saturated 12] [--out docs]

Plain diffusers in a loop is what all are divided by, and what is measured twice: when it differs
from itself by more than 5 %, or an interval crosses the threshold, there is no verdict. The ways
take turns, forth and back in each block (bench/statistics.py). Writes figures/compare.json, its
plots, and the tables of performance.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from bench.machine import facts
from bench.own_app import MODEL, own_app
from bench.own_stack import own_stack
from bench.report import compare_tables, replace_section
from bench.statistics import abba
from bench.ways import OURS, ROOT, Ours, Server, Way, loop, peer
from sdserve.checkpoints import inspect_checkpoint

if TYPE_CHECKING:
    from bench.peers.drawing import Request

PEERS = ROOT / ".venv-bench" / "bin" / "python"
WARM_UP = 3  # requests of each way, told apart
BARE, AGAIN, ENGINE, INGRESS, PRODUCT = (
    "diffusers loop", "the same again", "our engine's loop", "sdserve, bare ingress", "sdserve",
)  # fmt: skip
ROUTES = {"fastapi": "/generate", "litserve": "/predict", "bentoml": "/generate"}
AnyWay = TypeVar("AnyWay", bound=Way)
Samples = dict[str, list[list[float]]]  # by way, then block


class Requests:
    """Requests that differ in their seeds only, the same for every way."""

    def __init__(self, model: Path) -> None:
        _, self._defaults = inspect_checkpoint(model)

    def take(self, first: int, number: int) -> "list[Request]":
        defaults = self._defaults
        return [
            {
                "prompt": "a red circle on a blue background",
                "num_inference_steps": defaults.steps,
                "guidance_scale": defaults.guidance_scale,
                "width": defaults.width,
                "height": defaults.height,
                "seed": seed,
            }
            for seed in range(first, first + number)
        ]


def start(stack: ExitStack, options: Any, probe: "Request") -> dict[str, Way]:
    """All ways, warm."""
    model, threads = options.model, options.threads
    python = Path(sys.executable)
    ways: dict[str, Way] = {}
    bare = stack.enter_context(loop(python, "bare", model, threads))
    ways[BARE] = ways[AGAIN] = bare
    ways[ENGINE] = stack.enter_context(loop(python, "engine", model, threads))
    app = stack.enter_context(own_app(model=model))
    ways[INGRESS] = Ours(url=f"{app.url}/v1/generate", headers=OURS)
    for name, route in ROUTES.items():
        if name not in options.without:
            print(f"starting {name} ...", file=sys.stderr, flush=True)
            ways[name] = stack.enter_context(peer(PEERS, name, route, probe, model, threads))
    if "stack" not in options.without:
        print("starting the stack ...", file=sys.stderr, flush=True)
        own = stack.enter_context(own_stack(model, ["--preload"]))
        ours = Ours(url=f"{own.url}/{own.app}/v1/generate", headers=OURS)
        ours.picture(probe)
        ways[PRODUCT] = ours
        if "ray" not in options.without:
            own.run(
                "bench.peers.ray_peer", "--address", own.ray_address, "--model", str(model),
                "--threads", str(threads),
            )  # fmt: skip
            ways["Ray Serve's example"] = Server(url=f"{own.url}/peer-ray/imagine", is_query=True)
    return ways


def refuse_other_pictures(ways: dict[str, Way], probe: "Request") -> None:
    """Every server draws the same pixels, or the comparison is none.

    Raises:
        ValueError: one does not.
    """
    drawn = {name: way.picture(probe) for name, way in ways.items() if isinstance(way, Server)}
    pixels = {name: np.asarray(Image.open(BytesIO(data))) for name, data in drawn.items()}
    first = next(iter(pixels.values()))
    others = [name for name, each in pixels.items() if not np.array_equal(first, each)]
    if others:
        raise ValueError(f"other pixels than the first server's: {', '.join(others)}")


def measure(
    ways: dict[str, AnyWay],
    blocks: int,
    take: "Callable[[int], list[Request]]",
    of: "Callable[[AnyWay, list[Request]], list[float]]",
) -> Samples:
    """The samples of each way in each block. `take` gives the requests of a turn by a number."""
    samples: Samples = {name: [] for name in ways}
    numbers = count()
    for turns in abba(list(ways), blocks):
        for name in ways:
            samples[name].append([])
        number = next(numbers)
        for name in turns:
            samples[name][-1] += of(ways[name], take(number))
        print(f"block {number + 1} of {blocks}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    return samples


def run(options: Any) -> dict[str, Any]:
    """Measure all of it."""
    requests = Requests(options.model)
    (probe,) = requests.take(0, 1)
    before = facts(threads=options.threads)
    with ExitStack() as stack:
        ways = start(stack, options, probe)
        refuse_other_pictures(ways, probe)
        warm_up = {name: way.draw(requests.take(0, WARM_UP)) for name, way in ways.items()}
        alone = measure(
            ways,
            options.blocks,
            lambda block: requests.take(1000 * block, options.requests),
            lambda way, asked: way.draw(asked),
        )
        ours = {name: way for name, way in ways.items() if isinstance(way, Ours)}
        overhead = measure(
            ours,
            options.blocks,
            lambda block: requests.take(1000 * block, options.requests),
            lambda way, asked: way.overheads(asked),
        )
        busy = measure(
            ways,
            options.blocks,
            lambda block: requests.take(1000 * block, options.saturated),
            lambda way, asked: [way.rate(asked)],
        )
    return {
        "command": "python -m bench " + " ".join(sys.argv[1:]),
        "machine": before | {"load_average_after": os.getloadavg()},
        "request": probe,
        "warm_up": {name: statistics.median(seconds) for name, seconds in warm_up.items()},
        "alone": alone,  # seconds of a request
        "overhead": overhead,  # seconds of a request beside its own drawing and encoding
        "busy": busy,  # pictures per second
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench compare", description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--requests", type=int, default=6, help="of a turn, one client")
    parser.add_argument("--saturated", type=int, default=12, help="of a turn, several clients")
    parser.add_argument("--threads", type=int, default=1, help="of torch, everywhere")
    parser.add_argument(
        "--without", nargs="*", default=[], choices=[*ROUTES, "ray", "stack"], help="leave out"
    )
    parser.add_argument("--out", type=Path, help="the folder of performance.md")
    options = parser.parse_args(arguments)
    found = run(options)
    text = compare_tables(found)
    print(text)
    if options.out:
        figures = options.out / "figures"
        figures.mkdir(exist_ok=True)
        (figures / "compare.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        replace_section(options.out / "performance.md", "compare", text)
        draw = [str(PEERS), "-m", "bench.figures", str(figures / "compare.json"), str(figures)]
        subprocess.run(draw, cwd=ROOT, check=True)  # noqa: S603 (ours)


if __name__ == "__main__":
    main()
