"""G9: the share of pictures that are ready within three times an unloaded one's time.

Open loop: pictures are asked for at the moments of a Poisson process, at 80 % of what a full queue
showed to be possible, and join the others between steps as a replica lets them. The file's encoding
and HTTP are left out. Beside it what nobody can beat who draws one at a time in the order of coming
and has no other delay: the same arrivals in a queue of constant service (Lindley's recursion).
"""

import statistics
import time
from collections.abc import Sequence

from bench.drawing import SLOTS, draw, draw_arriving, draw_queue
from bench.gpu.findings import Findings, Row, met, told
from bench.gpu.subject import Subject
from bench.open_loop import poisson
from bench.statistics import quantile
from workers.width import Widths

LOAD = 0.8  # of the capacity
LIMIT = 3.0  # times the unloaded latency
GOAL = 0.99
FIRST = 20_000  # number of the series


def measure(subject: Subject) -> Findings:
    plan, widths = subject.plan, Widths(SLOTS)
    asked = subject.requests(subject.queue)
    draw_queue(subject.engine, asked, widths)  # finds the width
    start = time.perf_counter()
    draw_queue(subject.engine, asked, widths)
    capacity = subject.queue / (time.perf_counter() - start)  # pictures a second
    unloaded = statistics.median(_unloaded(subject))
    due = poisson(LOAD * capacity, plan.arrivals, seed=1)
    seconds = draw_arriving(subject.engine, subject.requests(len(due), FIRST), due, widths)
    alone = one_at_a_time(due, unloaded)
    share, limit = _within(seconds, LIMIT * unloaded), _within(alone, LIMIT * unloaded)
    return Findings(
        rows=[
            Row(
                goal="G9" if subject.kind == "sdxl" else "",
                what=f"{subject.what}: ready within 3 x {unloaded:.2f} s at 80 % of "
                f"{capacity:.2f}/s, {len(due)} arrivals",
                figure=f"{100 * share:.1f} % (p50 {quantile(seconds, 0.5):.2f} s, p95 "
                f"{quantile(seconds, 0.95):.2f} s); one at a time, computed: {100 * limit:.1f} %",
                target=f">= {100 * GOAL:g} %",
                verdict=told(plan, met(is_met=share >= GOAL)),
            )
        ],
        samples={"capacity": capacity, "unloaded": unloaded, "due": due, "latencies": seconds},
    )


def one_at_a_time(due: Sequence[float], service: float) -> list[float]:
    """Latencies of a queue that serves each arrival in `service` seconds, in order."""
    latencies, free = list[float](), 0.0
    for at in due:
        free = max(free, at) + service
        latencies.append(free - at)
    return latencies


def _unloaded(subject: Subject) -> list[float]:
    seconds = list[float]()
    for asked in subject.requests(subject.plan.samples, FIRST // 2):
        start = time.perf_counter()
        draw(subject.engine, asked)
        seconds.append(time.perf_counter() - start)
    return seconds


def _within(latencies: Sequence[float], limit: float) -> float:
    return statistics.fmean(one <= limit for one in latencies)
