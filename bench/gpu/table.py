"""The table of `gpu.md`. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.gpu.findings import UNMEASURED, Row


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row and when it was measured."""

    row: Row
    at: str
    load: float  # average of the machine, before its part began


def markdown(where: Mapping[str, Any], entries: Sequence[Entry], left: Mapping[str, str]) -> str:
    """The page.

    Args:
        where: see record.py.
        entries: in the order in which they were measured.
        left: goals without a row, and why.
    """
    plan, versions = where["plan"], where["versions"]
    days = sorted({entry.at[:10] for entry in entries})
    loads = [entry.load for entry in entries]
    head = (
        f"{' to '.join(dict.fromkeys([days[0], days[-1]]))}, {where['device']}, {where['cores']} "
        f"cores, torch {versions.get('torch')}, diffusers {versions.get('diffusers')}, commit "
        f"{where['commit']}, {plan['size']} size, {plan['precision']}, load average "
        f"{min(loads):.1f} to {max(loads):.1f}, `python -m bench.gpu`"
    )
    lines = [
        head + ("" if where["is_measured"] else f": **{UNMEASURED}**"),
        "",
        "| goal | what | figure | target | met |",
        "| --- " * 5 + "|",
    ]
    for entry in entries:
        row = entry.row
        cells = (row.goal, row.what, row.figure, row.target, row.verdict)
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    lines += [f"| {goal} | | | | {why} |" for goal, why in left.items()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """On one line, and without what ends a cell."""
    return " ".join(text.replace("|", "/").split())
