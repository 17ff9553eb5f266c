"""What an app costs that nobody asks anything: CPU and memory of a whole stack, by its processes.

    python -m bench.idle [--apps 1 20 60] [--seconds 30]

A stack of its own, with ever more copies of a demo checkpoint: what the last of them add is
the cost of one. CPU time is counted, so other work on the machine changes it little. Memory is what
the processes alone have (USS). Prints Markdown, with the goals.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from bench.machine import facts
from bench.own_app import MODEL
from bench.own_stack import OwnStack, own_stack
from bench.report import machine_line, table
from sdserve.daemon import Daemon

PATIENCE = 300.0  # seconds for what a deployment leaves to be done
MANY = 100  # idle apps, of which the goal is told
GOAL_CPU = 0.01  # of a core, of so many
SETTLE = 10.0  # seconds for what Ray and the standby process still do after a deployment


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a stack, by kind of process."""

    apps: int
    count: Counter[str]
    cpu: dict[str, float]  # of a core
    memory: Counter[str]  # bytes


def measure(roots: Sequence[int], apps: int, seconds: float) -> Cost:
    """What a stack uses that has these root processes, over so long."""
    before = {process: _cpu(process) for process in _family(roots)}
    time.sleep(seconds)
    count, spent, memory = Counter[str](), Counter[str](), Counter[str]()
    for process, then in before.items():
        with suppress(psutil.NoSuchProcess):  # one that ended meanwhile was no part of the rest
            kind = _kind(process)
            spent[kind] += round(1e6 * (_cpu(process) - then))
            memory[kind] += process.memory_full_info().uss
            count[kind] += 1
    cpu = {kind: micro / 1e6 / seconds for kind, micro in spent.items()}
    return Cost(apps=apps, count=count, cpu=cpu, memory=memory)


def rows(costs: Sequence[Cost]) -> list[list[str]]:
    """The lines of the table: all processes, by what they are, and what an app more has cost."""
    first, last = costs[0], costs[-1]
    more = last.apps - first.apps
    lines = list[list[str]]()
    for kind in [*sorted(last.cpu, key=lambda kind: -last.cpu[kind]), "all"]:
        cpus = [_of(cost.cpu, kind) for cost in costs]
        memories = [_of(cost.memory, kind) for cost in costs]
        counts = [round(_of(cost.count, kind)) for cost in costs]
        lines.append(
            [
                kind,
                str(counts[-1]) if len(set(counts)) == 1 else ", ".join(map(str, counts)),
                *(f"{100 * cpu:.1f} %" for cpu in cpus),
                f"{100 * (cpus[-1] - cpus[0]) / more:.3f} %",
                *(f"{memory / 1e6:.0f} MB" for memory in memories),
                f"{(memories[-1] - memories[0]) / more / 1e6:.2f} MB",
            ]
        )
    return lines


def goals(costs: Sequence[Cost]) -> list[list[str]]:
    """What an app more costs, against the goals."""
    first, last = costs[0], costs[-1]
    more = last.apps - first.apps
    cpu = MANY * (_of(last.cpu, "all") - _of(first.cpu, "all")) / more
    memory = (_of(last.memory, "all") - _of(first.memory, "all")) / more
    return [
        [f"CPU of {MANY} idle apps more", f"{100 * cpu:.1f} % of a core",
         f"<= {100 * GOAL_CPU:g} %", "met" if cpu <= GOAL_CPU else "**no**"],
        ["memory of an idle app", f"{memory / 1e6:.2f} MB", "stated", ""],
    ]  # fmt: skip


def _of(by_kind: dict[str, float] | Counter[str], kind: str) -> float:
    return sum(by_kind.values()) if kind == "all" else by_kind.get(kind, 0)


def _family(roots: Sequence[int]) -> Iterator[psutil.Process]:
    for root in roots:
        process = psutil.Process(root)
        yield process
        yield from process.children(recursive=True)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _kind(process: psutil.Process) -> str:
    title = process.cmdline()[0] if process.cmdline() else process.name()
    if title.startswith("ray::ServeReplica"):
        return title.rpartition(":")[2]
    return title.removeprefix("ray::") if title.startswith("ray::") else process.name()


def _roots(stack: OwnStack) -> list[int]:
    folder = Path(stack.environment["SD_STATE_DIR"])
    records: list[Path] = [*folder.glob("*.json"), *folder.glob("redis/*.json")]
    return [json.loads(record.read_text())["pid"] for record in records if Daemon.find(record)]


def _deploy(stack: OwnStack, apps: int) -> None:
    """Until so many copies of the app are deployed, and nothing of that is left to be done."""
    folder = Path(stack.environment["SD_MODELS_DIR"])
    (model,) = folder.glob(MODEL.name)
    for number in range(1, apps):
        copy = folder / f"copy-{number}.safetensors"
        if not copy.exists():
            os.link(model, copy)
    stack.run("deploy_scripts.deploy_sd", "--gpus", "0", "--all")
    deadline = time.monotonic() + PATIENCE
    while True:
        models = httpx.get(f"{stack.url}/v1/models", trust_env=False, timeout=PATIENCE).json()
        # A worker reads the hashes, file by file.
        if len(models["data"]) == apps and all(model["sha256"] for model in models["data"]):
            time.sleep(SETTLE)
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"the stack does not come to rest with {apps} apps")
        time.sleep(1)


def run(counts: Sequence[int], seconds: float) -> list[Cost]:
    """What a stack costs with each of these numbers of apps, ascending."""
    costs = list[Cost]()
    with own_stack(MODEL) as stack:
        for apps in counts:
            print(f"{apps} apps ...", file=sys.stderr, flush=True)
            _deploy(stack, apps)
            costs.append(measure(_roots(stack), apps, seconds))
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--apps", type=int, nargs="+", default=[1, 20, 60], help="two or more")
    parser.add_argument("--seconds", type=float, default=30, help="of each look")
    options = parser.parse_args()
    counts: list[int] = sorted(set(options.apps))
    if len(counts) < 2 or counts[0] < 1:
        parser.error("--apps: at least two different numbers above 0, the cost is the difference")
    machine = facts(threads=1)
    costs = run(counts, options.seconds)
    command = f"python -m bench.idle --apps {' '.join(map(str, counts))} "
    found = {
        "machine": machine | {"load_average_after": os.getloadavg()},
        "command": f"{command}--seconds {options.seconds:g}",
    }
    columns = [
        "processes", "number", *(f"CPU, {apps} apps" for apps in counts), "each app",
        *(f"memory, {apps} apps" for apps in counts), "each app",
    ]  # fmt: skip
    print(machine_line(found))
    print()
    print("\n".join(table(columns, rows(costs))))
    print()
    print("\n".join(table(["goal", "measured", "", ""], goals(costs))))


if __name__ == "__main__":
    main()
