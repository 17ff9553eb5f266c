"""The product under load, whole: steady, burst, from zero, many apps, mixed keys, killed.

    python -m bench scenarios [--seconds 20] [--only S2 S9] [--deep 1000000] [--out docs]

A stack of its own with the demo model. Requests are sent open loop (bench/open_loop.py): a latency
counts from when its request was due. The SLO is three times the latency of a warm client alone.
What a machine gives drifts, so each scenario measures that, and the capacity, anew.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from bench.machine import facts
from bench.own_app import MODEL
from bench.own_stack import own_stack
from bench.report import machine_line, replace_section, table
from bench.scenarios.app_under_test import IDLE_TIMEOUT, AppUnderTest, Rows
from bench.scenarios.cold import from_zero, many_apps
from bench.scenarios.faults import killed_redis, killed_replica
from bench.scenarios.warm import burst, deep_queue, mixed_keys, poisson_loads, poll_storm

MANY = str(10**7)
SCENARIOS: dict[str, Callable[[AppUnderTest], Awaitable[Rows]]] = {
    "S2": poisson_loads,
    "S3": burst,
    "S7": poll_storm,
    "S9": killed_replica,
    "S9r": killed_redis,
    "S6": mixed_keys,
    "S4": from_zero,
    "S5": many_apps,
    "S8": deep_queue,
}
ELSEWHERE: Rows = [
    ["S1", "one warm client", "`python -m bench compare`, above"],
    ["S10", "100 idle apps", "`python -m bench.idle`, below"],
]


async def measure(app: AppUnderTest, only: Sequence[str]) -> Rows:
    """The lines of the table."""
    rows: Rows = []
    async with app.http:
        await app.ended((await app.submit())[0])
        for name, scenario in SCENARIOS.items():
            if name in only:
                print(f"{name} ...", file=sys.stderr, flush=True)
                rows += await scenario(app)
    return rows + ELSEWHERE


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench scenarios", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="of an open-loop run")
    parser.add_argument("--deep", type=int, default=1_000_000, help="queued jobs of S8")
    parser.add_argument("--only", nargs="*", default=list(SCENARIOS), choices=list(SCENARIOS))
    parser.add_argument("--out", type=Path, help="the folder of performance.md")
    options = parser.parse_args(arguments)
    if options.out and set(options.only) != set(SCENARIOS):
        parser.error("--out takes all scenarios: a part of them would replace the rest")
    machine = facts(threads=1)
    deploy = ["--queue-limit", "1000", "--idle-timeout", str(IDLE_TIMEOUT)]
    print("starting the stack ...", file=sys.stderr, flush=True)
    bounds = {"SD_MAX_JOBS": MANY, "SD_MAX_JOBS_PER_KEY": MANY}
    with own_stack(MODEL, deploy, environment=bounds) as stack:
        app = AppUnderTest(stack, seconds=options.seconds, deep=options.deep)
        rows = asyncio.run(measure(app, options.only))
    found = {
        "machine": machine | {"load_average_after": os.getloadavg()},
        "command": "python -m bench " + " ".join(sys.argv[1:]),
    }
    text = "\n".join([machine_line(found), "", *table(["", "scenario", "figures"], rows)])
    print(text)
    if options.out:
        replace_section(options.out / "performance.md", "scenarios", text)
