"""Whether ours (`--exact`) and plain diffusers draw the same, alone and with another picture."""

from typing import Any

import numpy as np

from bench.drawing import denoise, draw
from bench.gpu.findings import Findings, Row, met, told
from bench.gpu.subject import Subject


def measure(subject: Subject) -> Findings:
    engine, asked = subject.load(subject.plan.precision, exact=True), subject.requests(2)
    expected: Any = np.asarray(subject.plain.draw(asked[0])).astype(int)
    differences = np.abs(draw(engine, asked[0]).astype(int) - expected)
    alone = [denoise(engine, one).latents.float() for one in asked]
    batch = [engine.begin(one, 0) for one in asked]
    while not batch[0].is_done:
        engine.step(batch)
    together = max(
        float((one.latents.float() - other).abs().max() / other.abs().max())
        for one, other in zip(batch, alone, strict=True)
    )
    # A broken model is equal to itself as well: a picture of one colour, or of none.
    is_picture = bool(np.isfinite(together)) and float(expected.std()) > 1
    most = int(differences.max())
    return Findings(
        rows=[
            Row(
                what=f"{subject.what}: pixels that differ from plain diffusers, most",
                figure=f"{most} of 255, {100 * float((differences > 0).mean()):.2g} % of them",
                target="0, and a picture",
                verdict=told(subject.plan, met(is_met=most == 0 and is_picture)),
            ),
            Row(
                what=f"{subject.what}: latents of two in a batch, most, by the largest",
                figure=f"{together:.1e}",
            ),
        ],
        samples={"pixels": most, "together": together, "deviation": float(expected.std())},
    )
