"""The whole product under all faults at random, for as long as one likes.

    python -m tests.faults.soak [--minutes 30] [--seed 1] [--folder DIR]

Three apps on a real stack of its own, clients that submit, repeat, poll and cancel over HTTP; then
everything settles and the history is checked. Prints Markdown; exit code 1 if a promise was broken.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tests.faults.checker import Facts, Violation, check
from tests.faults.full_stack import FullStack
from tests.faults.strikes import STRIKES

PAUSE = 3.0  # seconds between two strikes, on average

# What is told of each rule of the checker.
TOLD = {
    "lost": ("G1 lost",),
    "not ended": ("G1 unfinished",),
    "changed results": ("G2 state changed", "G2 result changed", "G2 not reproducible"),
    "missing results": ("G2 result missing", "G2 result of no success"),
    "two jobs for one key": ("G3 two jobs", "G3 two bodies"),
    "results after a cancel": ("G4 cancelled", "G4 result after cancel"),
    "innocents failed": ("G5 innocent failed",),
    "too many attempts": ("G5 attempts",),
    "internal errors": ("G7 internal error",),
    "counted wrongly": ("G8 counted", "G8 billed"),
    "seen by others": ("G9 seen by another",),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where history and logs stay (default: /tmp)")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="sdserve-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"history and logs: {folder}", file=sys.stderr)
    begin = time.monotonic()
    end = begin + options.minutes * 60
    stuck = 0
    with FullStack(folder, seed=options.seed, keys=10**5) as stack:
        for kind in shuffled(stack.random):
            if time.monotonic() > end:
                break
            seconds = time.monotonic() - begin
            print(f"{seconds:6.0f} s  {stack.accepted:5} jobs  {kind}", file=sys.stderr)
            try:
                STRIKES[kind](stack)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                stuck += 1  # the product did not come back from this one, or from an earlier one
                print(f"{kind}: {error}", file=sys.stderr)
            time.sleep(stack.random.uniform(0, 2 * PAUSE))
        facts = stack.settle()
    violations = check(facts)
    print(table(facts, violations, (time.monotonic() - begin) / 60))
    print(f"| **strikes that got stuck** | {stuck} |")
    for violation in violations:
        print(f"{violation.rule}: {violation.message}", file=sys.stderr)
    return 1 if violations or stuck else 0


def shuffled(random: Random) -> Iterator[str]:
    """All kinds in a random order, again and again: none is rarer than another."""
    while True:
        kinds = list(STRIKES)
        random.shuffle(kinds)
        yield from kinds


def table(facts: Facts, violations: list[Violation], minutes: float) -> str:
    """The run in Markdown."""
    jobs = facts.snapshot.jobs.values()
    ends = Counter(job.status for job in jobs)
    reasons = Counter(job.error for job in jobs if job.error)
    again = sum(job.attempt > 1 for job in jobs)
    rows: list[tuple[str, object]] = [
        ("minutes", f"{minutes:.1f}"),
        ("requests", len(facts.asked)),
        ("accepted jobs", len(facts.accepted)),
        *[(f"ended {status}", count) for status, count in sorted(ends.items())],
        *[(f"failed with `{code}`", count) for code, count in sorted(reasons.items())],
        ("ran more than once", again),
    ]
    struck = Counter(dict.fromkeys(STRIKES, 0))
    struck.update(fault.kind for fault in facts.faults if not fault.is_over)
    rows += [(f"*{kind}*", count) for kind, count in sorted(struck.items())]
    broken = Counter(violation.rule for violation in violations)
    for name, rules in TOLD.items():
        rows.append((f"**{name}**", sum(broken.pop(rule, 0) for rule in rules)))
    rows.append(("**anything else**", sum(broken.values())))
    return "\n".join(["| | |", "| --- | --- |", *[f"| {name} | {value} |" for name, value in rows]])


if __name__ == "__main__":
    sys.exit(main())
