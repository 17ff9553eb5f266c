"""Clients, replicas and reapers around one Redis, all in this process: many jobs in seconds."""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from random import Random
from types import TracebackType
from typing import Any, Self

from redis import Redis

from sdserve import keys
from sdserve.store import RedisJobStore
from tests.faults.checker import FINAL, Facts
from tests.faults.history import History, Struck
from tests.faults.light_client import LightClient
from tests.faults.light_replica import LightReplica, Reaper
from tests.faults.snapshot import take_snapshot

APPS = ("sd-a", "sd-b")
LIMIT = 120.0  # seconds for all to end, on a loaded machine


class LightStack:
    """Runs from `with` on; a killed replica is replaced at once, as Serve would."""

    def __init__(
        self,
        history: History,
        url: str,
        *,
        seed: int,
        direct_url: str | None = None,
        clients: int = 3,
        replicas: int = 2,
        reapers: int = 1,
    ) -> None:
        """Args:
        url: of Redis, as clients and replicas reach it.
        direct_url: as the last looks reach it, past all weather.
        replicas: of each of the two apps.
        """
        self.history = history
        self.random = Random(seed)
        self._url = url
        self._direct_url = direct_url or url
        self._number = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        # Two of three are one client to the product, and meet on idempotency keys.
        self.clients = [
            LightClient(f"{seed}-{n}", APPS, url, history, ("ann", "ann", "bob")[n % 3])
            for n in range(clients)
        ]
        self.reapers = [Reaper(APPS, url) for _ in range(reapers)]
        self._replicas = [self._replica(app) for app in APPS for _ in range(replicas)]
        self._serve = threading.Thread(target=self._replace_dead, name="serve", daemon=True)

    def __enter__(self) -> Self:
        for thread in (*self._replicas, *self.reapers, *self.clients, self._serve):
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._serve.join()
        for thread in (*self.clients, *self._replicas, *self.reapers):
            thread.stop()
        if error is not None:
            for replica in self._replicas:
                replica.kill()
        for thread in (*self.clients, *self._replicas, *self.reapers):
            if thread.ident is not None:
                thread.join()

    def kill_replica(self) -> None:
        """kill -9 of any of them."""
        with self._lock:
            victim = self.random.choice(self._replicas)
        strike = Struck(at=time.time(), kind="kill replica", app=victim.app, loses_replica=True)
        self.history.add(strike)
        victim.kill()

    def crash(self) -> None:
        """Power loss: nobody here does anything any more."""
        for client in self.clients:
            client.stop()
        with self._lock:
            for replica in self._replicas:
                replica.kill()

    def until_accepted(self, count: int, strike: Callable[[], None], pause: float) -> None:
        """Strike again and again, a random pause around `pause` between, under load."""
        deadline = time.monotonic() + LIMIT
        while sum(len(client.known) for client in self.clients) < count:
            assert time.monotonic() < deadline
            time.sleep(self.random.uniform(0.5, 1.5) * pause)
            strike()

    def settle(self) -> Facts:
        """Stop asking, wait for every job to end, look at each twice."""
        for client in self.clients:
            client.stop()
        for client in self.clients:
            client.join()
        with ExitStack() as stack:
            redis = stack.enter_context(Redis.from_url(self._direct_url, socket_timeout=10))
            watcher = LightClient("watcher", APPS, self._direct_url, self.history)
            assert all_end(redis), [RedisJobStore(redis).app_status(app) for app in APPS]
            for _ in range(2):
                for client in self.clients:
                    for job_id in client.known:
                        watcher.look(job_id)
            watcher.stop()
            # A zombie may still be on its way to its refused finish.
            self.__exit__(None, None, None)
            snapshot = take_snapshot(redis)
        return Facts(self.history.events(), snapshot)

    def _replica(self, app: str) -> LightReplica:
        self._number += 1
        return LightReplica(f"replica {self._number}", app, self._url, self.history)

    def _replace_dead(self) -> None:
        while not self._stopped.wait(0.02):
            with self._lock:
                for place, replica in enumerate(self._replicas):
                    if not replica.is_alive():
                        self._replicas[place] = self._replica(replica.app)
                        self._replicas[place].start()


def all_end(redis: Redis, limit: float = LIMIT) -> bool:
    """Wait until no job is queued or running. False: some still are after `limit` seconds."""
    deadline = time.monotonic() + limit
    while True:
        states = set[str]()
        for key in redis.scan_iter(match=keys.JOB + "*", count=1000):
            status: Any = redis.hget(key, "status")
            states.add(status.decode())
        if states <= set(FINAL):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
