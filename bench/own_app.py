"""An app of our own without Ray: Redis, the gateway under uvicorn, a replica, each a process."""

import multiprocessing
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import uvicorn

from api.edge import EdgeSettings
from api.gateway import create_app
from sdserve.api_keys import Role, new_token
from sdserve.apps import AppSpec, AppState
from sdserve.checkpoints import inspect_checkpoint
from sdserve.key_operations import CreateKey
from sdserve.limits import Quotas, ResultBudget
from sdserve.redis_server import ensure_redis, stop_redis
from sdserve.settings import Settings
from sdserve.store import RedisJobStore, connect
from workers.puller import Puller
from workers.replica_settings import ReplicaSettings

APP = "sd-bench"
MODEL = Path(__file__).parent.parent / "demo_models" / "tiny-shapes-sd15.safetensors"
HOUR = timedelta(hours=1)
PATIENCE = 120.0  # seconds for a replica to come up


@dataclass(frozen=True, kw_only=True)
class OwnApp:
    """Where it is."""

    gateway: str  # its URL
    redis_url: str
    store: RedisJobStore

    @property
    def url(self) -> str:
        """Of the app: /v1/generate, ..."""
        return f"{self.gateway}/{APP}"


@contextmanager
def own_app(*, model: Path = MODEL, step_seconds: float | None = None) -> Generator[OwnApp]:
    """A warm app; with `step_seconds` its engine only sleeps so long in each step.

    Raises:
        TimeoutError: its replica does not come up.
    """
    spec = spec_of(model)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(redis_url=None, state_dir=Path(folder))
        redis_url = ensure_redis(settings)
        server = socket.create_server(("127.0.0.1", 0), backlog=4096)
        context = multiprocessing.get_context("spawn")
        processes: list[BaseProcess] = [
            context.Process(target=serve, args=(redis_url, server)),
            context.Process(target=_pull, args=(spec, redis_url, step_seconds)),
        ]
        store = RedisJobStore(connect(redis_url))
        try:
            store.register_app(spec)
            for process in processes:
                process.start()
            _until_ready(store, processes)
            yield OwnApp(
                gateway=f"http://127.0.0.1:{server.getsockname()[1]}",
                redis_url=redis_url,
                store=store,
            )
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()
            server.close()
            stop_redis(settings)


@contextmanager
def serving(target: Callable[..., None], *arguments: Any) -> Generator[str]:
    """The URL of a process that runs `target(*arguments, socket)` until killed."""
    server = socket.create_server(("127.0.0.1", 0), backlog=4096)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=target, args=(*arguments, server))
    process.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        process.kill()
        process.join()
        server.close()


def new_client(store: RedisJobStore, name: str) -> str:
    """The token of a new API key."""
    token = new_token()
    store.run(
        CreateKey(
            key_id=token.key_id, name=name, role=Role.USER, digest=token.digest, quotas=Quotas()
        )
    )
    return token.text


def spec_of(model: Path) -> AppSpec:
    """The app of a checkpoint, on one core."""
    checkpoint, defaults = inspect_checkpoint(model)
    return AppSpec(
        name=APP, checkpoint=checkpoint, defaults=defaults, num_gpus=0, num_cpus=1,
        queue_limit=10_000,
    )  # fmt: skip


def replica_settings(redis_url: str) -> ReplicaSettings:
    """Generous: nothing runs out here."""
    return ReplicaSettings(
        redis_url=redis_url,
        lease=timedelta(seconds=15),
        job_ttl=HOUR,
        results=ResultBudget(ttl=HOUR),
        max_result_bytes=2**25,
        stop_grace=HOUR,
        step_timeout=HOUR,
        load_timeout=HOUR,
    )


def serve(redis_url: str, server: socket.socket) -> None:
    """Serve on `server` until killed."""
    settings = EdgeSettings(redis_url=redis_url, job_ttl=HOUR, sync_wait=HOUR)
    config = uvicorn.Config(create_app(settings), log_level="warning", access_log=False)
    uvicorn.Server(config).run([server])


def _pull(spec: AppSpec, redis_url: str, step_seconds: float | None) -> None:
    """Be a replica until killed."""
    os.environ["OMP_NUM_THREADS"] = "1"
    settings = replica_settings(redis_url)
    if step_seconds is None:
        Puller(spec, settings, born=time.monotonic())
    else:
        from bench.stub_engine import loads  # torch, which only this process needs

        Puller(spec, settings, born=time.monotonic(), load=loads(step_seconds))
    threading.Event().wait()


def _until_ready(store: RedisJobStore, processes: list[BaseProcess]) -> None:
    deadline = time.monotonic() + PATIENCE
    while store.app_status(APP).state is not AppState.READY:
        if time.monotonic() > deadline or not all(process.is_alive() for process in processes):
            raise TimeoutError("the replica does not come up: what it printed says why")
        time.sleep(0.05)
