"""Tables out of what was measured, and their place in performance.md. Pure but for that file."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.statistics import Estimate, bootstrap_difference, bootstrap_ratio, judge, tail

OVERHEAD = 0.010  # seconds, beside the engine and the encoding
RATE = 0.98  # of the engine's loop


def compare_tables(found: dict[str, Any]) -> str:
    """The Markdown of a comparison (bench/compare.py)."""
    alone, busy = found["alone"], found["busy"]
    base, again, engine, *_ = alone
    control = bootstrap_ratio(alone[again], alone[base])
    busy_control = bootstrap_ratio(busy[again], busy[base])
    rows = [
        [
            name,
            _milliseconds(statistics.median(_all(alone[name]))),
            " ".join((tail(_all(alone[name]))[0], _milliseconds(tail(_all(alone[name]))[1]))),
            str(bootstrap_ratio(alone[name], alone[base])),
            _difference(bootstrap_difference(alone[name], alone[engine])),
            f"{statistics.median(_all(busy[name])):.2f}",
            str(bootstrap_ratio(busy[name], busy[engine])),
        ]
        for name in alone
    ]
    names = [
        "way", "p50", "tail", f"p50 / {base}", f"p50 - {engine}, ms", "images/s, saturated",
        f"images/s / {engine}",
    ]  # fmt: skip
    goals = list[list[str]]()
    for name in alone:
        if not name.startswith("sdserve"):
            continue
        inside = found["overhead"][name]
        overhead = bootstrap_difference(inside, [[0.0]] * len(inside))
        rate = bootstrap_ratio(busy[name], busy[engine])
        goals += [
            [
                f"{name}: p50 beside its own drawing and encoding <= {OVERHEAD * 1000:.0f} ms",
                _difference(overhead),
                str(judge(overhead, control, at_most=OVERHEAD)),
            ],
            [
                f"{name}: saturated images/s >= {RATE}x of the engine's loop",
                str(rate),
                str(judge(rate, busy_control, at_least=RATE)),
            ],
        ]
    return "\n".join(
        [
            machine_line(found),
            "",
            *table(names, rows),
            "",
            f"Control, {base} against itself: latency {control}, rate {busy_control}. Intervals: "
            f"95 %, bootstrapped over {len(alone[base])} blocks. Latencies include the encoding of "
            "the PNG; the rates of the loops do not.",
            "",
            *table(["goal", "figure", "verdict"], goals),
        ]
    )


def machine_line(found: dict[str, Any]) -> str:
    """Where, when and with what."""
    machine = found["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    before, after = (machine[when][0] for when in ("load_average", "load_average_after"))
    return (
        f"{machine['date'][:10]}, commit {machine['git']}, {machine['cores']} cores "
        f"({machine['cpu']}), GPU: {machine['gpu'] or 'none'}, {machine['threads']} torch thread(s)"
        f", load average {before:.1f} to {after:.1f}; {versions}: `{found['command']}`."
    )


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return ["| " + " | ".join(cells) + " |" for cells in (names, ["---"] * len(names), *rows)]


def replace_section(page: Path, name: str, text: str) -> None:
    """Put `text` between the marks of this name in a page.

    Raises:
        ValueError: the page has no such marks.
    """
    begin, end = f"<!-- bench {name} -->\n", f"<!-- end of bench {name} -->\n"
    content = page.read_text("utf-8")
    if begin not in content or end not in content:
        raise ValueError(f"{page} has no place for '{name}': add {begin!r} and {end!r}")
    before, _, rest = content.partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{text}\n\n{end}{after}", "utf-8")


def _all(blocks: Sequence[Sequence[float]]) -> list[float]:
    return [sample for block in blocks for sample in block]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _difference(seconds: Estimate) -> str:
    low, high = seconds.low * 1000, seconds.high * 1000
    return f"{seconds.value * 1000:.1f} [{low:.1f}, {high:.1f}]"
