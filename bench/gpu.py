"""The engine beside plain diffusers on a GPU: the same pictures, latency, throughput, loading.

    python -m bench.gpu [--folder FOLDER] [--out FOLDER] [--size full|tiny] [--kinds sd1 sdxl]

Makes checkpoints with random weights (full size on a GPU, tiny on a CPU), looks whether ours and
plain diffusers draw the same, and measures the goals G1 to G11 and C1 to C10 as far as the engine
alone shows them: nothing here needs Ray, Redis or a network. Both sides draw the same requests in
the same precision, taking turns; the control is plain diffusers against itself. Writes `gpu.json`
and `gpu.md`. Without a GPU the same code runs on the CPU, which says nothing about a GPU, and so
do its tables.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray

from bench import load
from bench.drawing import denoise, draw, draw_queue, request, wait_for
from bench.statistics import Verdict, abba, bootstrap_ratio, judge
from sdserve.apps import Precision
from sdserve.checkpoints import inspect_checkpoint
from sdserve.generation import GenerationParams
from tools.make_checkpoint import make_checkpoint
from tools.plain_pipeline import load_plainly
from workers.energy import Window
from workers.engine import DiffusionEngine
from workers.loading import load_engine
from workers.metering import Meter
from workers.width import Widths

DIFFUSERS: Any = diffusers  # its names are lazy, type checkers see none of them
UNMEASURED = "not measured on a GPU"
SLOTS = 8  # pictures at a time, at most
GIB = 2**30
# Of one picture with 20 steps and guidance, FLOP (docs/performance.md), and the sides of pictures.
WORK = {"sd1": 34.6e12, "sdxl": 280.9e12}
SIDES = {"sd1": 512, "sdxl": 1024}
# Seconds a picture and pictures a second, on one H100 SXM.
LATENCY_GOALS = {"sd1": ("G5", 0.20), "sdxl": ("G1", 0.65)}
SPEED_GOALS = {"sd1": ("G6", 10.0), "sdxl": ("G3", 1.7)}
RATIO_GOAL = 0.65  # G2
ELSEWHERE = {
    "G4": "fp8 is not built",
    "G7": "the server: python -m bench compare",
    "G8": "the server: python -m bench compare",
    "G9": "the server: python -m bench compare",
    "C4": "the standby process: docs/performance.md",
    "C7": "the control plane: docs/performance.md",
    "C8": "the control plane: tests/faults",
    "C9": "the control plane: docs/performance.md",
    "C10": "0 s: --compile compiles beside the jobs (tests/integration/test_compiling.py)",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured, and on what."""

    device: str
    size: str  # of the checkpoints: "full" or "tiny"
    precision: Precision
    steps: int
    blocks: int
    pictures: int  # of a run that measures throughput
    threads: int
    loads: int  # rounds

    @classmethod
    def of(cls, *, is_gpu: bool, size: str) -> "Plan":
        return cls(
            device="cuda:0" if is_gpu else "cpu",
            size=size,
            precision=Precision.BFLOAT16 if is_gpu else Precision.FLOAT32,
            steps=20 if is_gpu else 4,
            blocks=5,
            pictures=2 * SLOTS if is_gpu else 4,
            threads=1,
            loads=2 if is_gpu else 1,
        )

    @property
    def is_measured(self) -> bool:
        """Whether the goals, which are those of a GPU and full size, can be judged."""
        return self.device != "cpu" and self.size == "full"

    def side(self, kind: str, native: int) -> int:
        return SIDES[kind] if self.size == "full" else native


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    goal: str  # its name
    what: str
    figure: str
    target: str = ""
    verdict: str = ""


@dataclass(kw_only=True)
class Findings:
    """All that was measured: rows for people, samples for machines."""

    rows: list[Row] = field(default_factory=list[Row])
    samples: dict[str, Any] = field(default_factory=dict[str, Any])


class Plain:
    """Plain diffusers, in the way its documentation shows."""

    def __init__(self, path: Path, plan: Plan) -> None:
        pipeline = load_plainly(path, getattr(torch, plan.precision))
        self.pipeline = pipeline.to(plan.device)
        config = pipeline.scheduler.config
        pipeline.scheduler = DIFFUSERS.EulerDiscreteScheduler.from_config(config)

    def draw(self, asked: GenerationParams, output: str = "pil") -> Any:
        return self.pipeline(
            asked.prompt,
            num_inference_steps=asked.num_inference_steps,
            guidance_scale=asked.guidance_scale,
            width=asked.width,
            height=asked.height,
            generator=torch.Generator().manual_seed(asked.seed),
            output_type=output,
        ).images[0]


def measure_kind(kind: str, path: Path, plan: Plan, findings: Findings) -> None:
    """Equality, latency, throughput and the step of one checkpoint."""
    checkpoint, defaults = inspect_checkpoint(path)
    defaults = replace(defaults, scheduler="euler")
    side = plan.side(kind, defaults.width)
    asked = [request(defaults, side, n, steps=plan.steps) for n in range(plan.pictures)]
    engine = load_engine(
        checkpoint, device=plan.device, threads=plan.threads, precision=plan.precision,
        on_phase=lambda _: None,
    )  # fmt: skip
    plain = Plain(path, plan)
    findings.samples[kind] = samples = dict[str, Any](side=side, steps=plan.steps)
    what = f"{kind} {side}x{side}, {plan.steps} steps"
    samples["equality"] = _equality(engine, plain, asked)
    same, together = samples["equality"]["pixels"], samples["equality"]["together"]
    findings.rows.append(
        Row(
            goal="same",
            what=f"{what}: pixels that differ from plain diffusers, most; latents when batched",
            figure=f"{same:.0f} of 255; {together:.1e}",
            target="0",
            verdict=_told(plan, _met(same == 0)),
        )
    )
    _latency(kind, what, engine, plain, asked, plan, findings, samples)
    _throughput(kind, what, engine, plain, asked, plan, findings, samples)


def _equality(
    engine: DiffusionEngine, plain: Plain, asked: Sequence[GenerationParams]
) -> dict[str, float]:
    """The largest difference of a picture alone, of 255; and of latents batched, relative."""
    expected: NDArray[Any] = np.asarray(plain.draw(asked[0])).astype(int)
    alone = [denoise(engine, one).latents.float() for one in asked[:2]]
    batch = [engine.begin(one, 0) for one in asked[:2]]
    while not batch[0].is_done:
        engine.step(batch)
    return {
        "pixels": float(np.abs(draw(engine, asked[0]).astype(int) - expected).max()),
        "together": max(
            float((one.latents.float() - other).abs().max() / other.abs().max())
            for one, other in zip(batch, alone, strict=True)
        ),
    }


def _latency(
    kind: str,
    what: str,
    engine: DiffusionEngine,
    plain: Plain,
    asked: Sequence[GenerationParams],
    plan: Plan,
    findings: Findings,
    samples: dict[str, Any],
) -> None:
    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: plain.draw(asked[0]),
        "control": lambda: plain.draw(asked[0]),
        "ours": lambda: draw(engine, asked[0]),
    }
    seconds = _interleaved(ways, plan, engine)
    samples["latency"] = seconds
    ratio, control = (
        bootstrap_ratio(seconds[way], seconds["plain"]) for way in ("ours", "control")
    )
    name, target = LATENCY_GOALS[kind]
    ours, theirs = (
        statistics.median(second for block in seconds[way] for second in block)
        for way in ("ours", "plain")
    )
    findings.rows += [
        Row(
            goal=name,
            what=f"{what}: a picture, warm, engine alone",
            figure=f"{ours:.3f} s (plain {theirs:.3f} s){_rate(kind, plan, ours)}",
            target=f"<= {target} s",
            verdict=_told(plan, _met(ours <= target)),
        ),
        Row(
            goal="G2" if kind == "sdxl" else "",
            what=f"{what}: the same, ratio to plain diffusers",
            figure=f"{ratio} (control {control})",
            target=f"<= {RATIO_GOAL}",
            verdict=_told(plan, judge(ratio, control, at_most=RATIO_GOAL)),
        ),
    ]
    steps = list[float]()
    denoising = engine.begin(asked[0], 0)
    while not denoising.is_done:
        start = time.perf_counter()
        engine.step([denoising])
        wait_for(engine)
        steps.append(time.perf_counter() - start)
    findings.rows.append(
        Row(
            goal="G11",
            what=f"{what}: a cancelled job frees the device after the step that runs, longest",
            figure=f"{1000 * max(steps):.1f} ms (median {1000 * statistics.median(steps):.1f})",
            target="the median step + 20 ms",
            verdict=_told(plan, _met(max(steps) <= statistics.median(steps) + 0.020)),
        )
    )


def _throughput(
    kind: str,
    what: str,
    engine: DiffusionEngine,
    plain: Plain,
    asked: Sequence[GenerationParams],
    plan: Plan,
    findings: Findings,
    samples: dict[str, Any],
) -> None:
    widths = Widths(SLOTS)

    def one_by_one() -> None:
        for one in asked:
            plain.draw(one)

    ways: dict[str, Callable[[], object]] = {
        "plain": one_by_one,
        "control": one_by_one,
        "ours": lambda: draw_queue(engine, asked, widths),
    }
    meter, start = Meter(plan.device), time.monotonic()
    draw_queue(engine, asked, widths)  # also finds the width
    reading = meter.stop([Window(start=start, end=time.monotonic())], is_shared=False)
    seconds = _interleaved(ways, plan, engine)
    samples["queue"] = seconds
    size, rows = (asked[0].width, asked[0].height), 2
    samples["width"] = widths.known(size, rows)
    samples["step by pictures"] = widths.curve(size, rows)
    ratio, control = (
        bootstrap_ratio(seconds["plain"], seconds[way]) for way in ("ours", "control")
    )
    whole = statistics.median(second for block in seconds["ours"] for second in block)
    speed = len(asked) / whole
    name, target = SPEED_GOALS[kind]
    curve = ", ".join(f"{1000 * cost:.1f}" for cost in samples["step by pictures"])
    findings.rows.append(
        Row(
            goal=name,
            what=f"{what}: pictures a second of a full queue; width chosen, ms of a step by it",
            figure=f"{speed:.2f}, {ratio} x plain (control {control}); {samples['width']}: {curve}",
            target=f">= {target:g}",
            verdict=_told(plan, _met(speed >= target)),
        )
    )
    if kind == "sdxl":
        joules = reading.gpu_energy_joules
        each = UNMEASURED if joules is None else f"{joules / len(asked):.0f} J"
        findings.rows.append(
            Row(
                goal="G10",
                what=f"{what}: energy of a picture of a full queue ({reading.energy_quality})",
                figure=each,
                target="<= 450 J",
                verdict=_told(plan, _met(joules is not None and joules / len(asked) <= 450)),
            )
        )


def _interleaved(
    ways: dict[str, Callable[[], object]], plan: Plan, engine: DiffusionEngine
) -> dict[str, list[list[float]]]:
    """Seconds of each way, by blocks; each is warmed first."""
    for work in ways.values():
        work()
    seconds: dict[str, list[list[float]]] = {way: [] for way in ways}
    for turns in abba(list(ways), plan.blocks):
        for way in ways:
            seconds[way].append([])
        for way in turns:
            wait_for(engine)
            start = time.perf_counter()
            ways[way]()
            wait_for(engine)
            seconds[way][-1].append(time.perf_counter() - start)
    return seconds


def measure_loading(kind: str, path: Path, plan: Plan, findings: Findings) -> None:
    """From a new process to the first picture, each with a cold and a warm page cache."""
    _, defaults = inspect_checkpoint(path)
    setting = load.Setting(
        device=plan.device,
        precision=plan.precision,
        threads=plan.threads,
        side=plan.side(kind, defaults.width),
        steps=plan.steps,
    )
    size = path.stat().st_size
    bus = _bus_speed(plan.device)
    for cache, prepare in (("cold", load.drop_from_cache), ("warm", load.fill_cache)):
        prepare(path)
        link = min(load.read_speed(path), bus or float("inf"))
        rows: dict[str, list[load.Row]] = {"plain": [], "ours, imports done": []}
        for number in range(plan.loads):
            for way in rows if number % 2 == 0 else reversed(rows):
                prepare(path)
                rows[way].append(load.run(way, path, setting))
        findings.samples[f"{kind}, loading, {cache}"] = rows
        ours, plains = rows["ours, imports done"], rows["plain"]
        seconds = statistics.median(row["load"] for row in ours)
        total, theirs = (statistics.median(row["total"] for row in each) for each in (ours, plains))
        times = seconds * link / size
        what = f"{kind} {size / GIB:.2f} GiB, {cache} page cache"
        findings.rows.append(
            Row(
                goal="C1" if cache == "warm" else "C3",
                what=f"{what}: file to device",
                figure=f"{seconds:.2f} s, {times:.2f} x the slowest link ({link / 1e9:.1f} GB/s)",
                target="<= 1.3 x the slowest link",
                verdict=_told(plan, _met(times <= 1.3)),
            )
        )
        if (cache, kind) == ("warm", "sdxl"):
            findings.rows.append(
                Row(
                    goal="C2",
                    what=f"{what}: file to device",
                    figure=f"{seconds:.2f} s",
                    target="<= 0.40 s",
                    verdict=_told(plan, _met(seconds <= 0.40)),
                )
            )
        findings.rows.append(
            Row(
                goal="C5, C6",
                what=f"{what}: first picture, without Serve's start of a replica",
                figure=f"{total:.2f} s, {total / theirs:.2f} x plain ({theirs:.2f} s)",
                target="<= 3 s, <= 0.35 x",
                verdict=_told(plan, _met(total <= 3 and total / theirs <= 0.35)),
            )
        )


def _bus_speed(device: str) -> float | None:
    """Bytes a second from pinned memory to the GPU; None without one."""
    if device == "cpu":
        return None
    pinned = torch.empty(256 << 20, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(pinned, device=device)
    there.copy_(pinned)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(8):
        there.copy_(pinned, non_blocking=True)
    torch.cuda.synchronize()
    return 8 * pinned.nbytes / (time.perf_counter() - start)


def _rate(kind: str, plan: Plan, seconds: float) -> str:
    if not plan.is_measured:
        return ""
    return f", {WORK[kind] * plan.steps / 20 / seconds / 1e12:.0f} TFLOP/s"


def _met(is_met: bool) -> Verdict:  # noqa: FBT001 (a condition)
    return Verdict.MET if is_met else Verdict.NOT_MET


def _told(plan: Plan, verdict: Verdict) -> str:
    return str(verdict) if plan.is_measured else UNMEASURED


def environment(plan: Plan) -> dict[str, Any]:
    """Where and with what it was measured."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607
    gpu = torch.cuda.get_device_name(0) if plan.device != "cpu" else None
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": git.stdout.strip() or None,
        "device": gpu or f"{platform.machine()} CPU, {plan.threads} thread",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
        "load average": os.getloadavg()[0],
        "plan": asdict(plan),
    }


def markdown(where: dict[str, Any], findings: Findings, plan: Plan) -> str:
    lines = [
        f"{where['date']}, {where['device']}, torch {where['torch']}, diffusers "
        f"{where['diffusers']}, {plan.size} size, {plan.precision}, load average "
        f"{where['load average']:.1f}, `python -m bench.gpu`"
        + ("" if plan.is_measured else f": **{UNMEASURED}**"),
        "",
        "| goal | what | figure | target | met |",
        "| --- " * 5 + "|",
    ]
    lines += [
        f"| {row.goal} | {row.what} | {row.figure} | {row.target} | {row.verdict} |"
        for row in findings.rows
    ]
    lines += [f"| {goal} | | | | {why} |" for goal, why in ELSEWHERE.items()]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, default=Path(gettempdir()) / "bench-gpu")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of gpu.json and gpu.md")
    parser.add_argument("--size", choices=("full", "tiny"), help="default: full on a GPU")
    parser.add_argument("--kinds", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--steps", type=int, help="default: 20 on a GPU, else 4")
    parser.add_argument(
        "--pictures", type=int, help="in a full queue; default: 16 on a GPU, else 4"
    )
    parser.add_argument("--loading", action=argparse.BooleanOptionalAction, default=True)
    options: Any = parser.parse_args(arguments)
    is_gpu = torch.cuda.is_available()
    plan = Plan.of(is_gpu=is_gpu, size=options.size or ("full" if is_gpu else "tiny"))
    plan = replace(
        plan, steps=options.steps or plan.steps, pictures=options.pictures or plan.pictures
    )
    torch.set_num_threads(plan.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    findings, where = Findings(), environment(plan)
    for kind in options.kinds:
        dtype = "bf16" if is_gpu else "f16"
        path = options.folder / f"{kind}-{plan.size}-{dtype}.safetensors"
        if not path.exists():
            make_checkpoint(path, kind, size=plan.size, dtype=dtype)
        if options.loading:
            measure_loading(kind, path, plan, findings)
        measure_kind(kind, path, plan, findings)
        # After each: a run that is cut off has told what it knows.
        told = {"where": where, "rows": [asdict(row) for row in findings.rows]}
        (options.out / "gpu.json").write_text(json.dumps(told | {"samples": findings.samples}))
        (options.out / "gpu.md").write_text(markdown(where, findings, plan))
    print((options.out / "gpu.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
