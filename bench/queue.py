"""The queue alone, without HTTP or a model: cycles, depth, memory, restart.

    python -m bench.queue [--deep 1000000] [--cycles 3000] [--rq-jobs 100]

On a Redis or Valkey of its own with an append-only file (everysec). Prints Markdown:

- job cycles a second of one worker: submit, claim, finish, beside RQ's workers with a function that
  does nothing (enqueue, run), in turns on the same server;
- p50 of submit, claim and poll (place and state of a job), with few and with many queued jobs, each
  of which was submitted;
- bytes of Redis per queued job, without and with `hash-max-listpack-value`, and with a key;
- a restart with all of these jobs.
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
from sdserve.operations import Claim, Finish, Submit, ViewJob, script_text
from sdserve.redis_server import LISTPACK_VALUE, server_binary
from sdserve.store import RedisJobStore

APP = "sd-xl-base-1-0"
CLIENT = "k3y1d8xx"
HOUR = timedelta(hours=1)
SHALLOW = 2_000
PIPELINE = 500  # submissions sent together while filling
BLOCKS = 5
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
        digest=job_id, client=CLIENT, limits=LIMITS, idempotency_key=key,
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


def depths(redis: Redis, number: int) -> list[float]:
    """p50 of a submission, a claim and a poll, in milliseconds."""
    store = RedisJobStore(redis)
    jobs = list[str]()

    def submit() -> None:
        jobs.append(store.run(submission()).job_id)

    def poll() -> None:
        store.run(ViewJob(job_id=jobs[-1]))

    def claim() -> None:
        store.run(Claim(app=APP, replica="bench", count=1, lease=HOUR))

    def p50(call: Callable[[], None]) -> float:
        taken = list[float]()
        for _ in range(number):
            began = time.perf_counter()
            call()
            taken.append((time.perf_counter() - began) * 1000)
        return statistics.median(taken)

    return [p50(submit), p50(claim), p50(poll)]


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
    with server() as running:
        print(f"{running.name}, load average {os.getloadavg()[0]:.1f}\n")
        found = cycles(running.redis, options.cycles, options.rq_jobs)
    middle = {name: statistics.median(rates) for name, rates in found.items()}
    rows = [
        [name, f"{middle[name]:.0f}", f"{min(rates):.0f}-{max(rates):.0f}",
         f"{middle['sdserve'] / middle[name]:.1f}"]
        for name, rates in found.items()
    ]  # fmt: skip
    table(["one worker", "cycles/s", "of 5 blocks", "sdserve is x times that"], rows)
    rows = [
        [what, f"{bytes_per_job(listpack_value=value, keyed=keyed):.0f}"]
        for what, value, keyed in (
            ("as our own server is set", LISTPACK_VALUE, False),
            ("the same, each with an Idempotency-Key", LISTPACK_VALUE, True),
            ("a server without hash-max-listpack-value (64)", 64, False),
        )
    ]
    table(["a queued job", "bytes"], rows)
    with server() as running:
        fill(running.redis, SHALLOW)
        depths(running.redis, 200)  # connections, scripts
        shallow = depths(running.redis, options.calls)
        fill(running.redis, options.deep)
        deep = depths(running.redis, options.calls)
        rows = [
            [what, f"{before:.3f} ms", f"{after:.3f} ms", f"{after / before:.2f}"]
            for what, before, after in zip(("submit", "claim", "poll"), shallow, deep, strict=True)
        ]
        table(["p50", f"{SHALLOW} queued", f"{options.deep} queued", "ratio"], rows)
        waiting: Any = running.redis.zcard(keys.QUEUE + APP)
        time.sleep(1.5)  # everysec
        running.kill()
        seconds = running.start()
        left: Any = running.redis.zcard(keys.QUEUE + APP)
        rows = [[str(waiting), str(waiting - left), f"{seconds:.1f} s"]]
        table(["queued, then kill -9", "lost", "answers after"], rows)


if __name__ == "__main__":
    main()
