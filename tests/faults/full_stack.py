"""The real product under load: Ray Serve, tiny real checkpoints, HTTP; and Redis behind a proxy."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from subprocess import CompletedProcess
from types import TracebackType
from typing import Self

from sdserve.api_keys import Role
from sdserve.apps import AppStatus
from sdserve.store import RedisJobStore
from tests.acceptance.conftest import DEMO_MODELS, Stack
from tests.faults.checker import FINAL, Facts
from tests.faults.history import History, Struck
from tests.faults.http_client import HttpClient
from tests.faults.light_stack import all_end
from tests.faults.redis_process import RedisProcess
from tests.faults.snapshot import take_snapshot
from tests.faults.tcp_proxy import CALM, TcpProxy
from tests.keys import create_key

# The first two stay; the third is deployed, broken, mended and deleted by strikes.
APPS = ("sd-first", "sd-second", "sd-fickle")
FICKLE = APPS[-1]
LEASE = 4.0  # seconds, as SD_LEASE of the stack
LIMIT = 240.0  # seconds for anything that must happen, on a loaded machine
BUSY_PATIENCE = 10.0  # seconds
# Two replicas of each app, two of them on a second node when there is one, gone soon when idle.
OPTIONS = ("--cpus", "0.5", "--max-replicas", "2", "--idle-timeout", "10")


class FullStack:
    """Runs from `with` on: the stack is up, three apps are deployed, clients ask."""

    def __init__(self, folder: Path, *, seed: int, clients: int = 3, keys: int = 400) -> None:
        self.history = History(folder / "history.jsonl")
        self.random = Random(seed)
        self.redis = RedisProcess(folder / "redis", fsync="always")
        self.redis.start()
        with self.redis.client() as redis:
            store = RedisJobStore(redis)
            # Two clients are one to the product and meet on idempotency keys, the third is another.
            tokens = [create_key(store, name) for name in ("ann", "bob")]
            admin = create_key(store, "watcher", Role.ADMIN)
        self.proxy = TcpProxy(self.redis.port)
        self.product = Stack(folder)
        self.product.environment |= {
            "REDIS_URL": self.proxy.url,
            "SD_AUTH": "on",
            "SD_LEASE": f"{LEASE:g}",
            "SD_RESULT_TTL": "86400",
        }
        self.processes = self.product.processes
        self.clients = [
            HttpClient(
                f"{seed}-{n}", APPS, self.product.url, self.history, keys=keys,
                token=tokens[n % 3 // 2],
            )
            for n in range(clients)
        ]  # fmt: skip
        for client in self.clients:
            client.rivals = tuple(self.clients)
        self._watcher = HttpClient(
            f"{seed}-watcher", APPS, self.product.url, self.history, keys=1, token=admin,
            is_admin=True,
        )  # fmt: skip
        self._next_key = 4 * keys + 1

    def __enter__(self) -> Self:
        try:
            self.up()
            for app in APPS:
                shutil.copy(DEMO_MODELS / "tiny-shapes-sd15.safetensors", self.file(app))
                self.deploy(app)
        except BaseException:
            self._close()
            raise
        for client in self.clients:
            client.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._quiet()
        self._close()

    @property
    def accepted(self) -> int:
        """Jobs so far."""
        return len({job_id for client in self.clients for job_id in client.known})

    def struck(
        self,
        kind: str,
        *,
        app: str | None = None,
        is_over: bool = False,
        loses_replica: bool = False,
        ends_jobs: str | None = None,
    ) -> None:
        """Note a fault, at the moment it is made."""
        self.history.add(
            Struck(
                at=time.time(),
                kind=kind,
                app=app,
                is_over=is_over,
                loses_replica=loses_replica,
                ends_jobs=ends_jobs,
            )
        )

    def up(self) -> None:
        """`stack up`; again while the cluster comes back from a strike."""
        self._insist(lambda: self.product.stack("up"))

    def deploy(self, app: str, *options: str) -> None:
        """Deploy an app, a new version of it if the options are new."""
        file = str(self.file(app))
        self._insist(lambda: self.product.deploy_sd(file, *OPTIONS, *options))

    def delete(self, app: str) -> None:
        self._insist(lambda: self.product.deploy_sd("--delete", app))

    def file(self, app: str) -> Path:
        return self.product.models / f"{app.removeprefix('sd-')}.safetensors"

    def status(self, app: str) -> AppStatus:
        """As the store sees it, past the proxy."""
        with self.redis.client() as redis:
            return RedisJobStore(redis).app_status(app)

    def busy_replica(self) -> tuple[str, int] | None:
        """App and process id of a replica with a job; None if there is none for a while."""
        deadline = time.monotonic() + BUSY_PATIENCE
        while time.monotonic() < deadline:
            busy = [
                (app, replica.pid)
                for app in APPS
                for status in [self.status(app)]
                for replica in status.replicas
                if status.running
            ]
            if busy:
                return self.random.choice(busy)
            time.sleep(0.05)
        return None

    def prove_alive(self, app: str) -> None:
        """A new job of this app succeeds."""
        deadline = time.monotonic() + LIMIT
        status = job_id = None
        self._next_key += 4  # never one of the long jobs
        while status not in FINAL:
            assert time.monotonic() < deadline, f"{app}: {job_id} is {status}"
            if job_id is None:  # Serve's proxy may not know a new route yet
                job_id = self._watcher.submit(app, self._next_key, priority=10)
            else:
                status = self._watcher.look(job_id, wait=5)
            time.sleep(0.1)
        assert status == "succeeded", f"{app}: {job_id} {status}"

    def settle(self) -> Facts:
        """End all weather, stop asking, wait for every job to end, look at each twice."""
        self._quiet()
        self.proxy.set(CALM)
        self.up()
        with self.redis.client() as redis:
            all_end(redis, LIMIT)  # else the checker tells of those that have not
        deadline = time.monotonic() + LIMIT
        for _ in range(2):
            for client in (*self.clients, self._watcher):
                for job_id in client.known:
                    while self._watcher.look(job_id) is None and time.monotonic() < deadline:
                        time.sleep(0.2)
        with self.redis.client() as redis:
            snapshot = take_snapshot(redis)
        return Facts(self.history.events(), snapshot)

    def _insist(self, command: Callable[[], CompletedProcess[str]]) -> None:
        deadline = time.monotonic() + LIMIT
        while True:
            done = command()
            if done.returncode == 0:
                return
            assert time.monotonic() < deadline, done.stderr
            time.sleep(1)

    def _quiet(self) -> None:
        for client in self.clients:
            client.stop()
        for client in self.clients:
            if client.ident is not None:
                client.join()

    def _close(self) -> None:
        stopped = self.product.stack("down")
        self._watcher.close()
        self.proxy.close()
        self.redis.kill()
        self.history.close()
        assert stopped.returncode == 0, stopped.stderr
