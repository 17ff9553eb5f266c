"""G3, G6: pictures a second of a full queue, beside plain diffusers one by one and in one call."""

import time

from bench.drawing import SLOTS, draw_queue
from bench.gpu.findings import Findings, Row, told
from bench.gpu.subject import Subject
from bench.gpu.taking_turns import absolute, drift, take_turns
from bench.gpu.work import WORK, rate
from bench.statistics import Estimate, bootstrap_ratio, judge
from workers.width import Widths

GOALS = {"sd1": ("G6", 10.0), "sdxl": ("G3", 1.7)}  # pictures a second


def measure(subject: Subject) -> Findings:
    plan, widths, number = subject.plan, Widths(SLOTS), subject.queue

    def one_by_one(turn: int) -> None:
        for asked in subject.requests(number, turn * number):
            subject.plain.draw(asked)

    seconds = take_turns(
        subject,
        {
            "plain": one_by_one,
            # Its warm-up also finds the width.
            "ours": lambda turn: draw_queue(
                subject.engine, subject.requests(number, turn * number), widths
            ),
        },
    )
    at_once = _one_call(subject)
    ratio, control = bootstrap_ratio(seconds["plain"], seconds["ours"]), drift(seconds["plain"])
    whole = absolute(seconds["ours"])
    speed = Estimate(value=number / whole.value, low=number / whole.high, high=number / whole.low)
    name, target = GOALS[subject.kind]
    used = rate(WORK[subject.kind].picture(plan.steps) * speed.value, 1.0)
    return Findings(
        rows=[
            Row(
                goal=name,
                what=f"{subject.what}: pictures a second of a full queue of {number}",
                figure=f"{speed}, width {widths.known(subject.size, 2)}"
                + (f", {used}" if plan.is_measured else ""),
                target=f">= {target:g}",
                verdict=told(plan, judge(speed, control, at_least=target)),
            ),
            Row(
                what=f"{subject.what}: the same, times plain diffusers one by one",
                figure=f"{ratio} (control {control}); plain, {number} in one call: {at_once:.2f}/s",
            ),
        ],
        samples={
            **seconds,
            "width": widths.known(subject.size, 2),
            "plain in one call": at_once,
        },
    )


def _one_call(subject: Subject) -> float:
    """Pictures a second of plain diffusers that gets the queue as one batch."""
    subject.plain.draw_together(subject.requests(subject.queue))  # warm
    start = time.perf_counter()
    subject.plain.draw_together(subject.requests(subject.queue))
    subject.wait()
    return subject.queue / (time.perf_counter() - start)
