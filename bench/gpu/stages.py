"""Where the time of a picture goes: text encoding, steps, decoding, and how well each is used."""

import statistics
from collections.abc import Callable
from typing import TypeVar

from bench.gpu.findings import Findings, Row
from bench.gpu.subject import Subject
from bench.gpu.work import WORK, rate
from workers.stopwatch import Section, Stopwatch

FIRST = 10_000  # number of the series: prompts that nobody has encoded yet
Result = TypeVar("Result")


def measure(subject: Subject) -> Findings:
    plan, engine = subject.plan, subject.engine
    stopwatch = Stopwatch(plan.device, beside=lambda: 0.0)
    sections: dict[str, list[Section]] = {"text": [], "step": [], "decode": []}

    def timed(stage: str, work: Callable[[], Result]) -> Result:
        with stopwatch.section(sections[stage].append):
            return work()

    for asked in subject.requests(plan.samples, FIRST):
        denoising = timed("text", lambda asked=asked: engine.begin(asked, 0))
        while not denoising.is_done:
            timed("step", lambda one=denoising: engine.step([one]))
        timed("decode", lambda one=denoising: engine.decode(one))
    work = WORK[subject.kind]
    flop = {"text": work.text, "step": work.step(), "decode": work.decode}
    seconds = {
        # By events on the stream where there is one: what the device did, without Python's part.
        stage: [one.seconds if one.gpu_seconds is None else one.gpu_seconds for one in found]
        for stage, found in sections.items()
    }
    clocks = {stage: [one.seconds for one in found] for stage, found in sections.items()}
    medians = {stage: statistics.median(found) for stage, found in seconds.items()}
    counts = {"text": 1, "step": plan.steps, "decode": 1}
    whole = sum(counts[stage] * medians[stage] for stage in counts)
    rows = [
        Row(
            what=f"{subject.what}: {stage}, {counts[stage]} of a picture",
            figure=f"{1000 * medians[stage]:.2f} ms on the device, "
            f"{1000 * statistics.median(clocks[stage]):.2f} by the clock, "
            f"{100 * counts[stage] * medians[stage] / whole:.0f} % of the picture"
            + (f", {rate(flop[stage], medians[stage])}" if plan.is_measured else ""),
        )
        for stage in counts
    ]
    return Findings(rows=rows, samples={"device": seconds, "clock": clocks})
