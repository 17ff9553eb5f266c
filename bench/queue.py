"""The queue alone, without HTTP or a model: cycles, depth, memory, restart.

    python -m bench.queue [--deep 1000000] [--cycles 3000] [--rq-jobs 100]

On a Redis or Valkey of its own with an append-only file (everysec). Prints Markdown, at the end the
goals and whether each is met:

- job cycles a second of one worker: submit, claim, finish, three calls one after the other, beside
  RQ's workers with a function that does nothing (enqueue, run), in turns on the same server;
- p50 of submit, claim and poll (a job, its place, what is before it), with few queued jobs on one
  server and many on another, each of which was submitted, in turns, no file being rewritten;
- bytes of Redis per queued job, without and with `hash-max-listpack-value`, and with a key;
- a kill -9 with all of these jobs, and a restart: how long it takes depends on how much of the file
  was written since it was last rewritten, so both parts are told.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, SimpleWorker, Worker

from sdserve import keys
from sdserve.generation import GenerationParams, ImageFormat
from sdserve.jobs import JobStatus, new_job_id
from sdserve.limits import Limits, Quotas, ResultBudget
from sdserve.operations import Claim, Finish, Look, Submit, script_text
from sdserve.redis_server import LISTPACK_VALUE, server_binary
from sdserve.store import RedisJobStore

APP = "sd-xl-base-1-0"
CLIENT = "k3y1d8xx"
HOUR = timedelta(hours=1)
SHALLOW = 2_000
PIPELINE = 500  # submissions sent together while filling
BLOCKS = 5
TURNS = 5  # of the calls of a p50
# The goals. Cycles and seconds are of a machine with two cores that does nothing else.
CYCLES, TIMES_RQ, TIMES_SHALLOW, BYTES, RESTART = 2_500, 40, 1.25, 800, 15.0
REWRITE_LIMIT = 120.0  # seconds
START_LIMIT = 120.0  # seconds
LIMITS = Limits(jobs=10**9, client=Quotas())
PARAMS = GenerationParams(
    prompt="a photograph of an astronaut riding a horse, golden hour, 35 mm", negative_prompt="",
    num_inference_steps=20, guidance_scale=5.0, width=1024, height=1024, seed=4_000_000_000,
    scheduler="euler", num_images=1, format=ImageFormat.PNG,
)  # fmt: skip


class Server:
    """A server in a folder of its own."""

    def __init__(self, folder: Path, *, listpack_value: int = LISTPACK_VALUE) -> None:
        self._command = [
            server_binary(), "--port", "0", "--unixsocket", str(folder / "s"), "--dir", str(folder),
            "--save", "", "--appendonly", "yes", "--appendfsync", "everysec",
            "--hash-max-listpack-value", str(listpack_value),
        ]  # fmt: skip
        self.redis = Redis(unix_socket_path=str(folder / "s"), socket_timeout=START_LIMIT)
        self.start()

    def start(self) -> float:
        """Returns the seconds until it answers, its data loaded."""
        began = time.monotonic()
        self._process = subprocess.Popen(  # noqa: S603 (our own server)
            self._command, stdout=subprocess.DEVNULL
        )
        while time.monotonic() < began + START_LIMIT:
            try:
                self.redis.ping()
            except RedisError:
                time.sleep(0.02)
            else:
                return time.monotonic() - began
        self.kill()
        raise TimeoutError(f"no answer within {START_LIMIT:.0f} s")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def wait_for_file(self) -> None:
        """Until no child rewrites the append-only file: that one's cost is not the depth's."""
        deadline = time.monotonic() + REWRITE_LIMIT
        while time.monotonic() < deadline:
            info = self._info()
            if not info["aof_rewrite_in_progress"] and not info["aof_rewrite_scheduled"]:
                return
            time.sleep(0.1)
        raise TimeoutError(f"the file is still being rewritten after {REWRITE_LIMIT:.0f} s")

    @property
    def file_bytes(self) -> tuple[int, int]:
        """Of the append-only file: as it was last rewritten, and what came since."""
        info = self._info()
        base = int(info["aof_base_size"])
        return base, int(info["aof_current_size"]) - base

    @property
    def bytes(self) -> int:
        return int(self._info()["used_memory"])

    @property
    def name(self) -> str:
        info = self._info()
        version = info.get("valkey_version", info["redis_version"])
        return f"{info.get('server_name', 'redis')} {version}"

    def _info(self) -> dict[str, Any]:
        info: Any = self.redis.info()
        return info


@contextmanager
def server(**options: Any) -> Generator[Server]:
    with tempfile.TemporaryDirectory(prefix="q") as folder:
        running = Server(Path(folder), **options)
        try:
            yield running
        finally:
            running.kill()


def submission(*, key: str | None = None) -> Submit:
    job_id = new_job_id()
    return Submit(
        job_id=job_id, app=APP, model="sd_xl_base_1.0", params=PARAMS, queue_limit=10**9,
        digest=job_id.replace("-", ""), client=CLIENT, limits=LIMITS, idempotency_key=key,
    )  # fmt: skip


def fill(redis: Redis, depth: int, *, keyed: bool = False) -> None:
    """Submit until so many wait."""
    there: Any = redis.zcard(keys.QUEUE + APP)
    sha: Any = redis.script_load(script_text(Submit.script))
    for first in range(there, depth, PIPELINE):
        with redis.pipeline(transaction=False) as pipe:
            for number in range(first, min(first + PIPELINE, depth)):
                job = submission(key=str(number) if keyed else None)
                pipe.evalsha(sha, len(job.keys), *job.keys, *job.arguments)  # pyright: ignore[reportArgumentType] (redis-py wants text)
            pipe.execute()


def cycle(store: RedisJobStore) -> None:
    store.run(submission())
    (job,) = store.run(Claim(app=APP, replica="bench", count=1, lease=HOUR))
    store.run(
        Finish(
            app=APP, job_id=job.id, fence=job.fence, status=JobStatus.SUCCEEDED, job_ttl=HOUR,
            results=ResultBudget(ttl=HOUR),
        )
    )  # fmt: skip


def rate(work: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def cycles(redis: Redis, ours: int, rq_jobs: int) -> dict[str, list[float]]:
    """Cycles a second of each way, in turns."""
    store = RedisJobStore(redis)
    queue = Queue("bench", connection=redis)

    def run_ours() -> None:
        for _ in range(ours):
            cycle(store)

    def run_rq(kind: type[Worker | SimpleWorker], jobs: int) -> None:
        for _ in range(jobs):
            queue.enqueue(time.monotonic, result_ttl=60)
        kind([queue], connection=redis).work(burst=True, logging_level="ERROR")

    cycle(store)
    found: dict[str, list[float]] = {"sdserve": [], "RQ Worker": [], "RQ SimpleWorker": []}
    for _ in range(BLOCKS):
        found["sdserve"].append(rate(run_ours, ours))
        found["RQ Worker"].append(rate(lambda: run_rq(Worker, rq_jobs), rq_jobs))
        found["RQ SimpleWorker"].append(rate(lambda: run_rq(SimpleWorker, rq_jobs), rq_jobs))
    return found


class Caller:
    """Submits, polls and claims on one server, and keeps how long each call took."""

    def __init__(self, redis: Redis) -> None:
        self._store = RedisJobStore(redis)
        self._job = ""
        self._taken = {"submit": list[float](), "claim": list[float](), "poll": list[float]()}

    def turn(self, number: int) -> None:
        for name, call in (("submit", self._submit), ("poll", self._poll), ("claim", self._claim)):
            for _ in range(number):
                began = time.perf_counter()
                call()
                self._taken[name].append((time.perf_counter() - began) * 1000)

    def forget(self) -> None:
        for taken in self._taken.values():
            taken.clear()

    @property
    def p50s(self) -> dict[str, float]:
        """Milliseconds of a call."""
        return {name: statistics.median(taken) for name, taken in self._taken.items()}

    def _submit(self) -> None:
        self._job = self._store.run(submission()).job_id

    def _poll(self) -> None:
        self._store.run(Look(job_id=self._job))

    def _claim(self) -> None:
        self._store.run(Claim(app=APP, replica="bench", count=1, lease=HOUR))


def depths(servers: Sequence[Server], number: int) -> list[dict[str, float]]:
    """p50 of a submission, a claim and a poll in milliseconds on each server."""
    callers = [Caller(each.redis) for each in servers]
    for caller in callers:
        caller.turn(200)  # connections, scripts
        caller.forget()
    for each in servers:
        each.wait_for_file()
    for _ in range(TURNS):
        for caller in callers:
            caller.turn(number // TURNS)
    return [caller.p50s for caller in callers]


def bytes_per_job(*, listpack_value: int, keyed: bool, number: int = 50_000) -> float:
    with server(listpack_value=listpack_value) as running:
        fill(running.redis, 1000)  # scripts, tables
        before = running.bytes
        fill(running.redis, 1000 + number, keyed=keyed)
        return (running.bytes - before) / number


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for cells in (names, ["---"] * len(names), *rows):
        print("| " + " | ".join(cells) + " |")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--deep", type=int, default=1_000_000, help="queued jobs")
    parser.add_argument("--cycles", type=int, default=3000, help="in each of the blocks")
    parser.add_argument("--rq-jobs", type=int, default=100, help="in each of the blocks")
    parser.add_argument("--calls", type=int, default=2000, help="for each p50")
    options = parser.parse_args()
    began, goals = time.monotonic(), list[tuple[str, str, bool]]()

    def goal(what: str, measured: str, *, is_met: bool) -> None:
        goals.append((what, measured, is_met))

    with server() as running:
        print(f"{running.name}, load average {os.getloadavg()[0]:.1f}\n")
        found = cycles(running.redis, options.cycles, options.rq_jobs)
    middle = {name: statistics.median(rates) for name, rates in found.items()}
    ours = middle["sdserve"]
    rows = [
        [name, f"{middle[name]:.0f}", f"{min(rates):.0f}-{max(rates):.0f}",
         f"{ours / middle[name]:.1f}"]
        for name, rates in found.items()
    ]  # fmt: skip
    table(["one worker", "cycles/s", f"of {BLOCKS} blocks", "sdserve is x times that"], rows)
    goal(f"cycles/s of one worker >= {CYCLES}", f"{ours:.0f}", is_met=ours >= CYCLES)
    times = ours / middle["RQ Worker"]
    goal(f"times RQ's Worker >= {TIMES_RQ}", f"{times:.1f}", is_met=times >= TIMES_RQ)

    rows = list[list[str]]()
    for what, value, keyed in (
        ("as our own server is set", LISTPACK_VALUE, False),
        ("the same, each with an Idempotency-Key", LISTPACK_VALUE, True),
        ("a server without hash-max-listpack-value (64)", 64, False),
    ):
        size = bytes_per_job(listpack_value=value, keyed=keyed)
        rows.append([what, f"{size:.0f}"])
        goal(f"bytes of a queued job, {what} <= {BYTES}", f"{size:.0f}", is_met=size <= BYTES)
    table(["a queued job", "bytes"], rows)

    with server() as few, server() as many:
        fill(few.redis, SHALLOW)
        fill(many.redis, options.deep)
        shallow, deep = depths([few, many], options.calls)
        rows = list[list[str]]()
        for what, before in shallow.items():
            ratio = deep[what] / before
            rows.append([what, f"{before:.3f} ms", f"{deep[what]:.3f} ms", f"{ratio:.2f}"])
            name = f"p50 of a {what}, {options.deep} / {SHALLOW} queued <= {TIMES_SHALLOW}"
            goal(name, f"{ratio:.2f}", is_met=ratio <= TIMES_SHALLOW)
        table(["p50", f"{SHALLOW} queued", f"{options.deep} queued", "ratio"], rows)

        waiting: Any = many.redis.zcard(keys.QUEUE + APP)
        base, since = many.file_bytes
        time.sleep(1.5)  # everysec
        many.kill()
        seconds = many.start()
        left: Any = many.redis.zcard(keys.QUEUE + APP)
        rows = [[
            str(waiting), str(waiting - left), f"{seconds:.1f} s",
            f"{base / 2**20:.0f} + {since / 2**20:.0f} MiB",
        ]]  # fmt: skip
        table(["queued, then kill -9", "lost", "answers after", "file: rewritten + since"], rows)
        goal("kill -9: lost = 0", str(waiting - left), is_met=waiting == left)
        goal(f"seconds to a restart <= {RESTART:.0f}", f"{seconds:.1f}", is_met=seconds <= RESTART)
    rows = [[what, measured, "met" if is_met else "**no**"] for what, measured, is_met in goals]
    table(["goal", "measured", ""], rows)
    minutes = (time.monotonic() - began) / 60
    print(f"{minutes:.1f} minutes, load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
