"""G10: what the board uses for a picture, by its own counter, beside plain diffusers."""

import time
from collections.abc import Callable
from dataclasses import replace

from bench.drawing import SLOTS, draw_queue
from bench.gpu.findings import Findings, Row, met, told
from bench.gpu.subject import Subject
from workers.energy import EnergyQuality, Window
from workers.metering import Meter, Reading
from workers.width import Widths

GOAL = 450.0  # joules
QUEUES = 2  # long enough for the counter: its ticks are up to 100 ms apart


def measure(subject: Subject) -> Findings:
    number, widths = QUEUES * subject.queue, Widths(SLOTS)
    asked = subject.requests(number)
    draw_queue(subject.engine, asked[: subject.queue], widths)  # warm, and finds the width
    subject.plain.draw(asked[0])  # loaded and warm, whatever part ran before

    def plainly() -> None:
        for one in asked:
            subject.plain.draw(one)

    found = {
        "ours": _metered(subject, lambda: draw_queue(subject.engine, asked, widths)),
        "plain": _metered(subject, plainly),
    }
    rows = [
        Row(
            what=f"{subject.what}: energy of a picture of a full queue, {way}, +- 5 %",
            figure=_told(reading, seconds, number),
        )
        for way, (reading, seconds) in found.items()
    ]
    if subject.kind == "sdxl":
        rows[0] = replace(
            rows[0],
            goal="G10",
            target=f"<= {GOAL:g} J",
            verdict=told(subject.plan, met(is_met=_is_met(found["ours"][0], number))),
        )
    return Findings(
        rows=rows,
        samples={
            way: {"joules": reading.gpu_energy_joules, "seconds": seconds, "pictures": number}
            for way, (reading, seconds) in found.items()
        },
    )


def _is_met(reading: Reading, pictures: int) -> bool:
    """Whether it is, by the counter alone: power that was sampled now and then is no measure."""
    joules = reading.gpu_energy_joules
    is_counted = reading.energy_quality in (EnergyQuality.MEASURED, EnergyQuality.INTERPOLATED)
    return is_counted and joules is not None and joules / pictures <= GOAL


def _metered(subject: Subject, work: Callable[[], object]) -> tuple[Reading, float]:
    """What was read, and the seconds it took."""
    subject.wait()
    meter, start = Meter(subject.plan.device), time.monotonic()
    work()
    subject.wait()
    end = time.monotonic()
    return meter.stop([Window(start=start, end=end)], is_shared=False), end - start


def _told(reading: Reading, seconds: float, pictures: int) -> str:
    joules = reading.gpu_energy_joules
    if joules is None:
        return "the board tells nothing"
    return f"{joules / pictures:.0f} J ({reading.energy_quality}), {joules / seconds:.0f} W"
