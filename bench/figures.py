"""The plots of a comparison, as SVG.

.venv-bench/bin/python -m bench.figures docs/figures/compare.json docs/figures
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl  # pyright: ignore[reportMissingImports] (in .venv-bench alone)

mpl.use("svg")
# The same figures, the same file: no date in it, no random names.
mpl.rcParams["svg.hashsalt"] = "sdserve"
from matplotlib import (  # noqa: E402  # pyright: ignore[reportMissingImports] (as above)
    pyplot as plt,
)


def draw(found: dict[str, Any], folder: Path) -> None:
    """Latency of one warm client, and pictures per second when saturated."""
    _boxes(
        {name: [1000 * s for s in _all(blocks)] for name, blocks in found["alone"].items()},
        "one warm client: milliseconds of a request",
        folder / "compare-latency.svg",
    )
    _boxes(
        {name: _all(blocks) for name, blocks in found["busy"].items()},
        "saturated: pictures per second",
        folder / "compare-rate.svg",
    )


def _boxes(samples: dict[str, list[float]], title: str, path: Path) -> None:
    names = list(samples)
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(names) + 1.2))
    axes.boxplot(
        [samples[name] for name in reversed(names)],
        orientation="horizontal",
        tick_labels=names[::-1],
        whis=(5, 95),
        showfliers=False,
    )
    axes.set_xlim(left=0)
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _all(blocks: Sequence[Sequence[float]]) -> list[float]:
    return [sample for block in blocks for sample in block]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("json", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    draw(json.loads(options.json.read_text("utf-8")), options.folder)


if __name__ == "__main__":
    main()
