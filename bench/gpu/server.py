"""G7, G8, C7, C8: what the server adds, by `bench compare` and `bench.control`; these need Ray.

Both draw the demo checkpoint on the CPU, as those commands do: the server's part of a request does
not depend on where the picture is drawn, but the goals are of a GPU host, so no verdict is given.
"""

import os
from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from bench.gpu.findings import UNMEASURED, Findings, Row
from bench.gpu.requirements import server_missing
from bench.gpu.subject import Subject
from bench.statistics import MIN_BLOCKS, bootstrap_difference, bootstrap_ratio

PEERS = ["fastapi", "litserve", "bentoml", "ray"]  # not of interest here
# The cold app of bench.control gets hundreds of jobs and draws none.
ROOM = {"SD_MAX_JOBS": "100000", "SD_MAX_JOBS_PER_KEY": "100000"}
TARGETS = {
    "G7": ("HTTP beside drawing and encoding", "<= 110 ms with PNG"),
    "G8": ("pictures a second, by the engine's own loop", ">= 0.98"),
    "C7": ("a 202 of a cold app, at 100/s", "p99 <= 25 ms"),
    "C8": ("200 at once on a cold app: not answered 202", "0"),
}


def measure(subject: Subject) -> Findings:
    if missing := server_missing():
        why = f"{', '.join(missing)} absent: not measured"
        return Findings(rows=[_row(goal, why, why) for goal in TARGETS])
    requests = subject.plan.samples
    return Findings(rows=[*_warm(requests), *_cold()])


def _row(goal: str, figure: str, verdict: str = UNMEASURED) -> Row:
    what, target = TARGETS[goal]
    return Row(
        goal=goal, what=f"{what}, demo checkpoint on the CPU", figure=figure, target=target,
        verdict=verdict,
    )  # fmt: skip


def _warm(requests: int) -> list[Row]:
    from bench.compare import ENGINE, PRODUCT, run  # needs what may be absent
    from bench.own_app import MODEL

    options = Namespace(
        model=MODEL, threads=1, without=PEERS, blocks=MIN_BLOCKS, requests=requests,
        saturated=2 * requests,
    )  # fmt: skip
    found = run(options)
    overhead = found["overhead"][PRODUCT]
    beside = bootstrap_difference(overhead, [[0.0]] * len(overhead))
    speed = bootstrap_ratio(found["busy"][PRODUCT], found["busy"][ENGINE])
    low, high = 1000 * beside.low, 1000 * beside.high
    return [
        _row("G7", f"{1000 * beside.value:.1f} ms [{low:.1f}, {high:.1f}]"),
        _row("G8", str(speed)),
    ]


def _cold() -> list[Row]:
    from bench.own_app import MODEL  # needs what may be absent
    from bench.own_stack import own_stack

    with TemporaryDirectory() as folder, patch.dict(os.environ, ROOM), own_stack(MODEL) as stack:
        table = Path(folder) / "control.md"
        stack.run("bench.control", "--seconds", "5", "--markdown", str(table))
        lines = [line.split("|") for line in table.read_text().splitlines()]
    cells = {line[1].strip(): line for line in lines if len(line) > 2}
    cold, burst = (
        next(line for name, line in cells.items() if mark in name)
        for mark in ("202, cold", "at once")
    )
    return [
        _row("C7", f"p50 {cold[3].strip()}, p99 {cold[4].strip()}"),
        _row("C8", burst[-2].strip()),
    ]
