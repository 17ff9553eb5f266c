"""What a step costs by the number of pictures in it, from which the width of a batch follows."""

import math
import statistics
import time

from bench.gpu.findings import Findings, Row
from bench.gpu.subject import Subject
from bench.gpu.work import WORK, rate


def measure(subject: Subject) -> Findings:
    steps = {width: _steps(subject, width) for width in subject.plan.widths}
    seconds = {width: statistics.median(found) for width, found in steps.items()}
    alone = seconds[1]
    rows = [
        Row(
            what=f"{subject.what}: a step with {width} pictures",
            figure=_told(subject, width, cost, cost / width / alone),
        )
        for width, cost in seconds.items()
    ]
    return Findings(
        rows=rows,
        samples={
            str(width): [one if math.isfinite(one) else None for one in found]
            for width, found in steps.items()
        },
    )


def _steps(subject: Subject, width: int) -> list[float]:
    """Seconds of steps of so many pictures; infinite where they did not fit into memory."""
    engine = subject.engine
    batch = [engine.begin(asked, 0) for asked in subject.requests(width)]
    seconds = list[float]()
    while not batch[0].is_done:
        subject.wait()
        start = time.perf_counter()
        is_fit = engine.step(batch)
        subject.wait()
        seconds.append(time.perf_counter() - start if is_fit else math.inf)
    return seconds[1:]  # the first of its kind pays for the set-up


def _told(subject: Subject, width: int, cost: float, share: float) -> str:
    if not math.isfinite(cost):
        return "does not fit into memory"
    speed = rate(WORK[subject.kind].step(width), cost) if subject.plan.is_measured else ""
    return f"{1000 * cost:.1f} ms, a picture costs {share:.2f} x of one alone" + (
        f", {speed}" if speed else ""
    )
