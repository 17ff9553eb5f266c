"""What the list of all apps takes, by how many there are.

    python -m bench.models [--apps 10 1000] [--looks 50]

A gateway of its own, bare under uvicorn, and a Redis, in which so many apps are registered: no file
of theirs exists, and none is opened. `GET /v1/models`, one after the other. Prints Markdown.
"""

import argparse
import os
import statistics
import time
from dataclasses import replace

import httpx

from bench.machine import facts
from bench.own_app import MODEL, spec_of
from bench.report import machine_line, table
from bench.waiters import bare_gateway
from sdserve.store import RedisJobStore, connect

PATIENCE = 60.0  # seconds
GOAL_APPS, GOAL = 1000, 0.050  # seconds at the median


def measure(counts: list[int], looks: int) -> list[list[str]]:
    """A line for each number of apps, ascending."""
    rows = list[list[str]]()
    spec = spec_of(MODEL)
    with bare_gateway() as (url, redis_url, _pid):
        store = RedisJobStore(connect(redis_url))
        with httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE) as http:
            http.get("/v1/models").raise_for_status()  # once it serves
            for count in counts:
                for number in range(count):
                    store.register_app(replace(spec, name=f"sd-{number:05}"))
                times = sorted(_look(http, count) for _ in range(looks))
                half = statistics.median(times)
                goal, verdict = "", ""
                if count == GOAL_APPS:
                    goal = f"p50 <= {GOAL * 1000:g} ms"
                    verdict = "met" if half <= GOAL else "**no**"
                told = (f"{half * 1000:.1f} ms", f"{times[-1] * 1000:.1f} ms")
                rows.append([str(count), *told, goal, verdict])
    return rows


def _look(http: httpx.Client, count: int) -> float:
    start = time.perf_counter()
    answer = http.get("/v1/models")
    seconds = time.perf_counter() - start
    if len(answer.raise_for_status().json()["data"]) != count:
        raise RuntimeError(f"{count} apps are registered, told: {answer.text[:200]}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--apps", type=int, nargs="+", default=[10, GOAL_APPS])
    parser.add_argument("--looks", type=int, default=50)
    options = parser.parse_args()
    counts = sorted(set(options.apps))
    machine = facts(threads=1)
    rows = measure(counts, options.looks)
    found = {
        "machine": machine | {"load_average_after": os.getloadavg()},
        "command": f"python -m bench.models --apps {' '.join(map(str, counts))}",
    }
    print(machine_line(found), "", sep="\n")
    print("\n".join(table(["apps", "p50", "longest", "goal", ""], rows)))


if __name__ == "__main__":
    main()
