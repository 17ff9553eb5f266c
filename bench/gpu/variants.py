"""The engine's options side by side: what each gains, and what it does to the picture."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from bench.drawing import draw, wait_for
from bench.gpu.findings import Findings, Row
from bench.gpu.plan import Plan
from bench.gpu.subject import Subject
from bench.gpu.work import WORK, rate
from sdserve.apps import Precision
from workers.engine import DiffusionEngine

MIB = 2**20
PICTURES = 3  # of each variant, after one that warms
COMPILE_LIMIT = 240.0  # seconds
LOOK = 0.1  # seconds between looks whether the compiler is done


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to run the engine."""

    name: str
    load: Callable[[Subject], DiffusionEngine]
    prepare: Callable[[DiffusionEngine, Subject], None] = lambda _engine, _subject: None
    step_cache: int = 1  # of the requests
    needs_gpu: bool = False


def _as_planned(subject: Subject) -> DiffusionEngine:
    return subject.load(subject.plan.precision)


def _compiled(engine: DiffusionEngine, subject: Subject) -> None:
    """Have it compiled and wait, which a replica never does.

    Raises:
        TimeoutError: the compiler takes too long, or has failed, which is on standard error.
    """
    before, deadline = engine.compiled, time.monotonic() + COMPILE_LIMIT
    engine.compile(backend=subject.plan.backend)
    draw(engine, subject.request(0))  # asks for the first shape
    while engine.compiled == before:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not compiled within {COMPILE_LIMIT:g} s")
        time.sleep(LOOK)


# The first is what the others are compared with: a line each.
VARIANTS = (
    Variant(name="as served", load=_as_planned),
    Variant(
        name="exact",
        load=lambda subject: subject.load(subject.plan.precision, exact=True),
        needs_gpu=True,  # on a CPU all are
    ),
    Variant(name="float32", load=lambda subject: subject.load(Precision.FLOAT32)),
    Variant(name="bfloat16", load=lambda subject: subject.load(Precision.BFLOAT16)),
    Variant(
        name="float16",  # which few CPUs compute in
        load=lambda subject: subject.load(Precision.FLOAT16),
        needs_gpu=True,
    ),
    Variant(name="compiled", load=_as_planned, prepare=_compiled),
    Variant(name="step_cache 2", load=_as_planned, step_cache=2),
    Variant(name="step_cache 3", load=_as_planned, step_cache=3),
    # Again, for the drift of the machine meanwhile.
    Variant(name="as served, again", load=_as_planned),
)


def measure(subject: Subject) -> Findings:
    rows = list[Row]()
    samples = dict[str, Any]()
    expected: Any = None
    base = 1.0
    for variant in VARIANTS:
        if variant.needs_gpu and not subject.plan.is_gpu:
            continue
        try:
            picture, seconds, peak = _run(variant, subject)
        except Exception as error:  # noqa: BLE001 (one variant's failure is a row, not the others')
            rows.append(Row(what=_what(subject, variant), figure=f"failed: {error}"))
            continue
        median = statistics.median(seconds)
        if expected is None:
            expected, base = picture, median
        samples[variant.name] = {"seconds": seconds, "peak MiB": peak}
        rows.append(
            Row(
                what=_what(subject, variant),
                figure=f"{median:.3f} s, {median / base:.2f} x; {_difference(picture, expected)}"
                + ("" if peak is None else f"; {peak:.0f} MiB at most")
                + _speed(subject.plan, subject.kind, median),
            )
        )
    return Findings(rows=rows, samples=samples)


def _run(variant: Variant, subject: Subject) -> tuple[Any, list[float], float | None]:
    """A picture, the seconds of others, and the peak of memory that all engines here took."""
    engine = variant.load(subject)
    variant.prepare(engine, subject)
    if subject.plan.is_gpu:
        torch.cuda.reset_peak_memory_stats(engine.device)
        held = torch.cuda.memory_allocated(engine.device)
    else:
        held = 0
    first, *others = (
        replace(asked, step_cache=variant.step_cache) for asked in subject.requests(1 + PICTURES)
    )
    picture = draw(engine, first).astype(float)
    seconds = list[float]()
    for asked in others:
        wait_for(engine)
        start = time.perf_counter()
        draw(engine, asked)
        wait_for(engine)
        seconds.append(time.perf_counter() - start)
    if not subject.plan.is_gpu:
        return picture, seconds, None
    # Beyond the weights, of which the engines of other parts hold some as well.
    return picture, seconds, (torch.cuda.max_memory_allocated(engine.device) - held) / MIB


def _what(subject: Subject, variant: Variant) -> str:
    return f"{subject.what}: {variant.name}"


def _difference(picture: Any, expected: Any) -> str:
    if not np.isfinite(picture).all():
        return "no picture"
    error = float(np.mean((picture - expected) ** 2))
    if error == 0:
        return "the same pixels"
    return f"PSNR {10 * np.log10(255**2 / error):.1f} dB"


def _speed(plan: Plan, kind: str, seconds: float) -> str:
    if not plan.is_measured:
        return ""
    return f"; {rate(WORK[kind].picture(plan.steps), seconds)}"
