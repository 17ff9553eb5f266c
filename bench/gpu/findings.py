"""What a part found: rows for people, samples for machines."""

from dataclasses import dataclass, field
from typing import Any

from bench.gpu.plan import Plan
from bench.statistics import Verdict

UNMEASURED = "not measured on a GPU"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    goal: str = ""  # its name, if it is one's
    what: str
    figure: str
    target: str = ""
    verdict: str = ""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Of one part and one checkpoint."""

    rows: list[Row]
    samples: dict[str, Any] = field(default_factory=dict[str, Any])  # JSON


def told(plan: Plan, verdict: Verdict) -> str:
    """A verdict on a GPU's goal, where it is one."""
    return str(verdict) if plan.is_measured else UNMEASURED


def met(*, is_met: bool) -> Verdict:
    """Of a goal that is no estimate: a count, or the longest of several."""
    return Verdict.MET if is_met else Verdict.NOT_MET
