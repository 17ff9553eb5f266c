"""A Redis of a test's own that may be killed, starved, replicated or sent through time."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from redis import Redis
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError  # noqa: A004

from sdserve.redis_server import server_binary

LIMIT = 60.0  # seconds to start, on a loaded machine


class RedisProcess:
    """One server; its port and its folder stay across `kill` and `start`."""

    def __init__(
        self,
        folder: Path,
        *,
        fsync: str = "everysec",
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self._fsync = fsync
        self._options = options
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start, and wait until it has read its data."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    server_binary(), "--bind", "127.0.0.1", "--port", str(self.port),
                    "--dir", str(self.folder), "--save", "", "--appendonly", "yes",
                    "--appendfsync", self._fsync, "--maxmemory-policy", "noeviction",
                    *self._options,
                ],
                stdout=log, stderr=log, env=self._environment,
            )  # fmt: skip
        deadline = time.monotonic() + LIMIT
        with self.client() as client:
            while True:
                try:
                    client.ping()
                except (ConnectionError, TimeoutError, BusyLoadingError):
                    assert self._process.poll() is None, (self.folder / "log").read_text()
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                else:
                    return

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def client(self) -> Redis:
        return Redis.from_url(self.url, socket_timeout=10, socket_connect_timeout=10, retry=None)

    def copy(self, folder: Path, *, cut: int) -> "RedisProcess":
        """A stopped server's twin whose append-only file lacks its last `cut` bytes."""
        twin = RedisProcess(folder, fsync=self._fsync, options=self._options)
        shutil.copytree(self.folder, folder)
        os.truncate(twin.tail, max(0, twin.tail.stat().st_size - cut))
        return twin

    @property
    def tail(self) -> Path:
        """The file that is being appended to."""
        (tail,) = (self.folder / "appendonlydir").glob("*.incr.aof")
        return tail
