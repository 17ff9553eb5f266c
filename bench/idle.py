"""What a stack costs that nobody asks anything: CPU and memory of its processes, by what they are.

    python -m bench.idle [--seconds 20]

In the environment of a running stack without work (SD_STATE_DIR). Run it with several numbers of
deployed apps: the slope is the cost of one. CPU time is counted, so other work on the machine
changes it little. Memory is what the process alone has (USS). Prints Markdown.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from sdserve.daemon import Daemon
from sdserve.settings import read_settings


def measure(roots: Sequence[int], seconds: float) -> list[str]:
    """The rows of the table."""
    before = {process: _cpu(process) for process in _family(roots)}
    time.sleep(seconds)
    count, cpu, memory = Counter[str](), Counter[str](), Counter[str]()
    for process, spent in before.items():
        with suppress(psutil.NoSuchProcess):  # one that ended meanwhile was no part of the rest
            kind = _kind(process)
            cpu[kind] += round(1e6 * (_cpu(process) - spent))
            memory[kind] += process.memory_full_info().uss
            count[kind] += 1
    rows = [
        f"| {kind} | {count[kind]} | {cpu[kind] / 1e4 / seconds:.1f} % | {memory[kind] / 1e6:.0f} |"
        for kind in sorted(count, key=lambda kind: -cpu[kind])
    ]
    total = f"{cpu.total() / 1e4 / seconds:.1f} % | {memory.total() / 1e6:.0f}"
    return [*rows, f"| all | {count.total()} | {total} |"]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    folder = read_settings().state_dir
    records: list[Path] = [*folder.glob("*.json"), *folder.glob("redis/*.json")]
    roots = [json.loads(record.read_text())["pid"] for record in records if Daemon.find(record)]
    if not roots:
        parser.error("no stack runs in this environment: make up")
    print("| process | number | CPU, of a core | MB |\n| --- | --- | --- | --- |")
    for row in measure(roots, options.seconds):
        print(row)


if __name__ == "__main__":
    main()
