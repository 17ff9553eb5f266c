"""The engine beside plain diffusers on a GPU: the goals G1 to G11 and C1 to C10, unattended.

    python -m bench.gpu [--folder FOLDER] [--out FOLDER] [--only G1 C5 variants ...]

Makes checkpoints with random weights (full size on a GPU, tiny on a CPU) and measures part by part
(bench/gpu/parts.py), the most important first. Nothing but the part `server` needs Ray, Redis or a
network. `gpu.json` and `gpu.md` are written anew after each part; the same command run again goes
on where it was cut off, as long as commit, device and sizes are the same. A part that fails is a
row that says why, and the exit code is then 1. Without a GPU the same code runs at tiny size on the
CPU, which says nothing about a GPU, and so do its tables.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import gettempdir

from bench.gpu import parts, requirements
from bench.gpu.parts import KINDS


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--folder", type=Path, default=Path(gettempdir()) / "bench-gpu",
        help="of the checkpoints, which stay there: 9.1 GB at full size",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path(), help="folder of gpu.json and gpu.md")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="GOAL|PART",
        help=f"measured again if need be; parts: {', '.join(parts.NAMES)}",
    )  # fmt: skip
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--size", choices=("full", "tiny"), help="default: full on a GPU")
    parser.add_argument("--smallest", action="store_true", help="the least that runs all the code")
    options = parser.parse_args(arguments)
    if unknown := set(options.only) - parts.SELECTABLE:
        parser.error(f"--only {' '.join(sorted(unknown))}: no such goal or part; see --help")
    if missing := requirements.missing():
        print(requirements.told(missing), file=sys.stderr)
        return 2
    # What parts have started is stopped by the ends of their `with` blocks, also when told to end.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    # After the look at what is installed: it imports all of that.
    from bench.gpu.measurement import measure_all
    from bench.gpu.plan import Plan

    plan = Plan.here(size=options.size, is_smallest=options.smallest)
    return measure_all(plan, options)


if __name__ == "__main__":
    sys.exit(main())
