"""G11: from a cancel, at any moment of a step, to the device being free for the next job."""

import statistics
import threading
import time
from dataclasses import dataclass, field
from random import Random

from bench.gpu.findings import Findings, Row, met, told
from bench.gpu.subject import Subject

BEYOND = 0.020  # seconds over one step


@dataclass(frozen=True)
class Cancel:
    """What another thread sets, as the heartbeat does, and the engine's looks at between steps."""

    flag: threading.Event = field(default_factory=threading.Event)
    moments: list[float] = field(default_factory=list[float])  # when it was set

    def set(self) -> None:
        self.moments.append(time.perf_counter())
        self.flag.set()


def measure(subject: Subject) -> Findings:
    plan, random = subject.plan, Random(1)
    _, steps = _draw_until(subject, Cancel())
    step = statistics.median(steps)
    waits = list[float]()
    for _ in range(plan.samples):
        cancel = Cancel()
        # The last step is left out: who cancels then gets the picture all the same.
        timer = threading.Timer(random.uniform(0, (plan.steps - 1) * step), cancel.set)
        timer.start()
        free, _ = _draw_until(subject, cancel)
        timer.join()
        if cancel.moments[0] < free:  # else the picture was done before it came
            waits.append(free - cancel.moments[0])
    if not waits:
        raise RuntimeError("every picture was done before its cancel came: draw more steps")
    return Findings(
        rows=[
            Row(
                goal="G11" if subject.kind == "sdxl" else "",
                what=f"{subject.what}: from a cancel that reached the engine to a free device, "
                f"longest of {len(waits)}",
                figure=f"{1000 * max(waits):.1f} ms (median {1000 * statistics.median(waits):.1f}; "
                f"a step {1000 * step:.1f})",
                target="one step + 20 ms",
                verdict=told(plan, met(is_met=max(waits) <= step + BEYOND)),
            )
        ],
        samples={"waits": waits, "steps": steps},
    )


def _draw_until(subject: Subject, cancel: Cancel) -> tuple[float, list[float]]:
    """Denoise one picture as a replica does: the moment the device was free, seconds of steps."""
    denoising = subject.engine.begin(subject.request(0), 0)
    steps = list[float]()
    while not denoising.is_done and not cancel.flag.is_set():
        start = time.perf_counter()
        subject.engine.step([denoising])
        subject.wait()
        steps.append(time.perf_counter() - start)
    return time.perf_counter(), steps
