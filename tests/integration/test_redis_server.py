"""Our own Redis server, and what is asked of a foreign one."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from deploy_scripts import cluster
from deploy_scripts.command import ensure_store
from sdserve.daemon import Daemon
from sdserve.errors import DeployError, RedisServerError, StoreUnavailableError
from sdserve.redis_server import check_redis, ensure_redis, stop_redis
from sdserve.settings import Settings
from sdserve.store import connect
from tests.faults.redis_process import RedisProcess

pytestmark = pytest.mark.integration

START = """
from sdserve.redis_server import ensure_redis
from sdserve.settings import read_settings
print(ensure_redis(read_settings()))
"""


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    settings = Settings(redis_url=None, state_dir=tmp_path / "state")
    yield settings
    stop_redis(settings)


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[RedisProcess]:
    server = RedisProcess(tmp_path / "foreign")
    server.start()
    yield server
    server.kill()


def servers(settings: Settings) -> list[psutil.Process]:
    folder = str(settings.state_dir / "redis")
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if process.name() in ("valkey-server", "redis-server") and any(
                file.path.startswith(folder) for file in process.open_files()
            ):
                found.append(process)
    return found


def test_commands_that_start_at_once_share_one_server(settings: Settings) -> None:
    environment = {**os.environ, "SD_STATE_DIR": str(settings.state_dir)}
    environment.pop("REDIS_URL", None)
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", START], stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(4)
    ]
    urls = {command.communicate(timeout=120)[0].strip() for command in commands}
    assert urls == {ensure_redis(settings)}
    (server,) = servers(settings)
    with connect(ensure_redis(settings)) as redis:
        redis.set("key", "kept")
    os.kill(server.pid, signal.SIGKILL)
    psutil.wait_procs([server], 30)
    assert {ensure_redis(settings)} == urls  # where running clients look for it
    with connect(ensure_redis(settings)) as redis:
        assert redis.get("key") == b"kept"


def test_its_password_is_for_its_owner_only(settings: Settings) -> None:
    old = os.umask(0)  # the most careless user
    try:
        ensure_redis(settings)
    finally:
        os.umask(old)
    folder = settings.state_dir / "redis"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    password = (folder / "password").read_text()
    assert len(password) >= 32
    holders = {path.name for path in folder.iterdir() if path.is_file() and _holds(path, password)}
    assert holders == {"password", "url", "redis.conf"}
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in holders} == {0o600}
    (server,) = servers(settings)
    assert password not in " ".join(server.cmdline())
    assert {connection.laddr.ip for connection in server.net_connections()} == {"127.0.0.1"}
    daemon = Daemon.find(folder / "server.json")
    assert daemon is not None
    assert daemon.pid == server.pid
    with pytest.raises(StoreUnavailableError, match="password"):
        check_redis(f"redis://:wrong@127.0.0.1:{(folder / 'port').read_text()}/0")


def _holds(path: Path, text: str) -> bool:
    return text.encode() in path.read_bytes()


@pytest.mark.parametrize(
    "policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-ttl"]
)
def test_a_server_that_would_delete_jobs_is_refused(foreign: RedisProcess, policy: str) -> None:
    with foreign.client() as redis:
        redis.config_set("maxmemory-policy", policy)
    with pytest.raises(RedisServerError, match=f"{policy}.*noeviction"):
        ensure_redis(Settings(redis_url=foreign.url))


def test_a_server_that_forgets_at_a_restart_is_told_of(
    foreign: RedisProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(redis_url=foreign.url)
    assert ensure_store(settings) == foreign.url
    assert capsys.readouterr().err == ""
    with foreign.client() as redis:
        redis.config_set("appendonly", "no")
    assert ensure_store(settings) == foreign.url
    assert "warning: " in (told := capsys.readouterr().err)
    assert "append-only file" in told


@pytest.mark.parametrize(
    ("host", "nodes", "is_refused"),
    [
        ("127.0.0.1", 1, False),
        ("127.0.0.1", 2, True),
        ("localhost", 2, True),
        ("[::1]", 2, True),
        ("redis.example.org", 2, False),
        ("10.0.0.5", 2, False),
    ],
)
def test_a_redis_on_loopback_serves_one_node_only(
    monkeypatch: pytest.MonkeyPatch, host: str, nodes: int, is_refused: bool
) -> None:
    dead = {"Alive": False}
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [{"Alive": True}] * nodes + [dead])
    if is_refused:
        with pytest.raises(DeployError, match="2 nodes"):
            cluster.refuse_unreachable_redis(f"redis://{host}:6379/0")
    else:
        cluster.refuse_unreachable_redis(f"redis://{host}:6379/0")
