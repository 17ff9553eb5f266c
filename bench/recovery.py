"""How soon a killed replica's job runs again, when another replica is alive.

    python -m bench.recovery [--rounds 20] [--lease 1] [--model FILE.safetensors]

Two replica processes of one app share a Redis of their own. In each round one of them draws a long
job and is killed (SIGKILL); the clock runs from the kill until the job's record says that the other
one runs it. Nobody but the replicas takes leases back: the gateway, which does so too, could only
make it faster. Prints Markdown; the bound is the lease plus one second.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from sdserve.apps import AppSpec, AppState
from sdserve.checkpoints import inspect_checkpoint
from sdserve.generation import GenerationParams, ImageFormat
from sdserve.jobs import Job, JobStatus, new_job_id
from sdserve.limits import ResultBudget
from sdserve.operations import Cancel, Submit, ViewJob
from sdserve.redis_server import ensure_redis, stop_redis
from sdserve.settings import Settings
from sdserve.store import RedisJobStore, connect
from workers.puller import Puller
from workers.replica_settings import ReplicaSettings

APP = "sd-recovery"
HOUR = timedelta(hours=1)
MODEL = Path(__file__).parent.parent / "demo_models" / "tiny-shapes-sd15.safetensors"
PATIENCE = 300.0  # seconds for anything that must happen
REPLICAS = 2


class Fleet:
    """The replica processes, by the pid under which they are present."""

    def __init__(self, store: RedisJobStore, redis_url: str, command: list[str]) -> None:
        self._store = store
        self._redis_url = redis_url
        self._command = command
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def fill(self) -> None:
        """Start what is missing, wait until all are ready."""
        while len(self._processes) < REPLICAS:
            process = subprocess.Popen(  # noqa: S603 (ourselves)
                self._command, env={**os.environ, "REDIS_URL": self._redis_url}
            )
            self._processes[process.pid] = process

        def all_ready() -> bool:
            replicas = self._store.app_status(APP).replicas
            ready = {replica.pid for replica in replicas if replica.state is AppState.READY}
            return ready == set(self._processes)

        _until(all_ready)

    def kill(self, pid: int) -> None:
        process = self._processes.pop(pid)
        process.kill()
        process.wait()

    def stop(self) -> None:
        for pid in list(self._processes):
            self.kill(pid)


def measure(store: RedisJobStore, fleet: Fleet, params: GenerationParams) -> float:
    """One round. Returns seconds."""
    fleet.fill()
    job_id = new_job_id()
    store.run(
        Submit(job_id=job_id, app=APP, model="m", params=params, queue_limit=9, digest=job_id)
    )

    def view() -> Job:
        return store.run(ViewJob(job_id=job_id))

    _until(lambda: view().step > 0)
    pids = {replica.id: replica.pid for replica in store.app_status(APP).replicas}
    killed = view().owner
    begin = time.perf_counter()
    fleet.kill(pids[str(killed)])
    _until(lambda: view().status is JobStatus.RUNNING and view().owner != killed)
    seconds = time.perf_counter() - begin
    store.run(Cancel(app=APP, job_id=job_id, job_ttl=HOUR))
    _until(lambda: view().status.is_final)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--lease", type=float, default=1.0, help="seconds")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--replica", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    checkpoint, defaults = inspect_checkpoint(options.model)
    spec = AppSpec(name=APP, checkpoint=checkpoint, defaults=defaults, num_gpus=0, num_cpus=1)
    if options.replica:
        _pull(spec, os.environ["REDIS_URL"], timedelta(seconds=options.lease))
    params = GenerationParams(
        prompt="a red circle",
        negative_prompt="",
        num_inference_steps=150,
        guidance_scale=defaults.guidance_scale,
        width=defaults.width,
        height=defaults.height,
        seed=0,
        scheduler=defaults.scheduler,
        num_images=8,
        format=ImageFormat.PNG,
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(redis_url=None, state_dir=Path(folder))
        url = ensure_redis(settings)
        store = RedisJobStore(connect(url))
        store.register_app(spec)
        command = [sys.executable, "-m", "bench.recovery", *sys.argv[1:], "--replica"]
        fleet = Fleet(store, url, command)
        try:
            rounds = [measure(store, fleet, params) for _ in range(options.rounds)]
        finally:
            fleet.stop()
            stop_redis(settings)
    bound = options.lease + 1
    p50, worst = statistics.median(rounds), max(rounds)
    print("| rounds | lease | p50 | max | p50 / (lease + 1 s) | max / (lease + 1 s) |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(
        f"| {len(rounds)} | {options.lease:g} s | {p50:.2f} s | {worst:.2f} s "
        f"| {p50 / bound:.2f} | {worst / bound:.2f} |"
    )


def _pull(spec: AppSpec, redis_url: str, lease: timedelta) -> None:
    """Be a replica until killed."""
    settings = ReplicaSettings(
        redis_url=redis_url,
        lease=lease,
        job_ttl=HOUR,
        results=ResultBudget(ttl=HOUR),
        max_result_bytes=2**25,
        stop_grace=HOUR,
        step_timeout=HOUR,
        load_timeout=HOUR,
    )
    Puller(spec, settings, born=time.monotonic())
    threading.Event().wait()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("a replica does not come up, or does not take the job")
        time.sleep(0.01)


if __name__ == "__main__":
    main()
