"""C4: from a request to a process that computes on the device; C9: what the standby costs idle."""

import os
import statistics
import subprocess
import sys
import time

from bench.gpu.findings import Findings, Row, met, told
from bench.gpu.subject import Subject
from bench.gpu.zygote import zygote
from bench.statistics import quantile

READY = {True: 1.0, False: 0.3}  # C4 with and without a GPU, seconds
MEMORY = 400.0  # C9, MB


def measure(subject: Subject) -> Findings:
    plan = subject.plan
    with zygote(plan.threads) as standby:
        forked = [standby.first_operation(plan.device)["process"] for _ in range(plan.samples)]
    fresh = [_fresh(plan.device) for _ in range(plan.cold_rounds)]
    goal, ready = READY[plan.is_gpu], standby.ready
    contexts = int(ready["has_context"])
    is_small = ready["rss"] <= MEMORY and not contexts
    return Findings(
        rows=[
            Row(
                goal="C4",
                what=f"from a request to a first result of {plan.device}, longest of {len(forked)}",
                figure=f"{max(forked):.3f} s (median {statistics.median(forked):.3f}); "
                f"a fresh Python with the imports {statistics.median(fresh):.2f} s",
                target=f"<= {goal:g} s",
                verdict=told(plan, met(is_met=quantile(forked, 1.0) <= goal)),
            ),
            Row(
                goal="C9",
                what="the standby process, once per node; an idle app has no process of its own",
                figure=f"RSS {ready['rss']:.0f} MB, {ready['private']:.0f} of it private, "
                f"{contexts} contexts on a GPU",
                target=f"<= {MEMORY:g} MB, 0",
                verdict=told(plan, met(is_met=is_small)),
            ),
        ],
        samples={"forked": forked, "fresh": fresh, "memory": ready},
    )


def _fresh(device: str) -> float:
    """Seconds of a Python that imports the libraries and asks the device for a first result."""
    code = f"import workers.assembly, torch; torch.ones(8, device={device!r}).sum().item()"
    start = time.perf_counter()
    subprocess.run(  # noqa: S603 (ourselves)
        [sys.executable, "-c", code], env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=True
    )
    return time.perf_counter() - start
