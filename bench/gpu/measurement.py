"""The command's run: the checkpoints, then part by part, each by itself."""

import gc
import os
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import torch

from bench.gpu.findings import Findings, Row
from bench.gpu.parts import Turn, turns
from bench.gpu.plan import Plan
from bench.gpu.record import Record
from bench.gpu.subject import Subject
from tools.make_checkpoint import make_checkpoint


def measure_all(plan: Plan, options: Namespace) -> int:
    """Measure what is asked for and not there yet; the exit code.

    Args:
        plan: how much.
        options: `folder`, `out`, `only` and `kinds` of the command line.
    """
    torch.set_num_threads(plan.threads)
    asked = list(turns(options.kinds, options.only))
    if not asked:
        _say("no part shows one of these goals with one of these kinds")
        return 2
    record = Record(options.out, plan)
    wanted = [turn for turn in asked if options.only or _is_due(turn, plan, record)]
    _say(f"{len(wanted)} of {len(asked)} parts to measure on {plan.device}, {plan.size} size")
    paths = make_checkpoints(options.folder, dict.fromkeys(turn.kind for turn in wanted), plan)
    subjects = {kind: Subject(plan=plan, kind=kind, path=path) for kind, path in paths.items()}
    for turn in wanted:
        _measure(turn, subjects[turn.kind], record)
    print(record.markdown)
    for key in record.failures:
        _say(f"failed: {key}")
    return 1 if record.failures else 0


def _is_due(turn: Turn, plan: Plan, record: Record) -> bool:
    """Whether to measure it unasked: not again, nor minutes of what says nothing of a GPU."""
    return not record.has(turn) and (plan.is_gpu or turn.name != "server")


def make_checkpoints(folder: Path, kinds: Mapping[str, None], plan: Plan) -> dict[str, Path]:
    """The files of these kinds; those that are not there yet are made, at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = "bf16" if plan.is_gpu else "f16"
    paths = {kind: folder / f"{kind}-{plan.size}-{dtype}.safetensors" for kind in kinds}
    missing = {kind: path for kind, path in paths.items() if not path.exists()}
    if missing:
        _say(f"making {', '.join(path.name for path in missing.values())} ...")
        # Not forked: torch's threads are here.
        with ProcessPoolExecutor(len(missing), mp_context=get_context("spawn")) as makers:
            for made in [
                makers.submit(_make, path, kind, plan.size, dtype) for kind, path in missing.items()
            ]:
                made.result()
    return paths


def _make(path: Path, kind: str, size: str, dtype: str) -> None:
    part = path.with_suffix(".part")  # who is cut off leaves no half file that looks like one
    make_checkpoint(part, kind, size=size, dtype=dtype)
    part.replace(path)


def _measure(turn: Turn, subject: Subject, record: Record) -> None:
    _say(f"{turn.key} ...")
    load, start, failed = os.getloadavg()[0], time.perf_counter(), None
    try:
        found: Findings = import_module(f"bench.gpu.{turn.name}").measure(subject)
    except Exception as error:  # noqa: BLE001 (told in the table and by the exit code)
        traceback.print_exc()
        failed = f"{type(error).__name__}: {error}"
        told = f"failed: {failed}"
        found = Findings(
            rows=[
                Row(goal=goal, what=turn.key, figure=told, verdict="failed")
                for goal in turn.goals or ("",)
            ]
        )
    if subject.plan.is_gpu:  # what a part held is the next one's, also after a failure
        gc.collect()
        torch.cuda.empty_cache()
    seconds = time.perf_counter() - start
    record.add(turn, found, seconds=seconds, load=load, failed=failed)
    _say(f"{turn.key}: {seconds:.0f} s")


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)
