"""A process per node with the libraries imported and no model; replicas are forked from it.

Importing torch, transformers and diffusers takes seconds, a fork milliseconds. The standby never
touches a device or a tensor, so its children may: CUDA cannot be forked once it has been used.

    python -m workers.standby      in the environment of a Ray worker; it ends when the node does

A child belongs to the replica that asked for it, over the connection on which it asked: when either
ends, so does the other. It answers one byte when it runs and is told by one byte to end: when its
jobs have ended, or at once.
"""

import fcntl
import json
import logging
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil
from pydantic import TypeAdapter

from sdserve.apps import AppSpec
from sdserve.daemon import Daemon
from workers.libraries import ENVIRONMENT, import_libraries
from workers.priority import give_way
from workers.puller import Puller
from workers.replica_settings import ReplicaSettings

log = logging.getLogger(__name__)

_RAYLET = "RAY_RAYLET_PID"  # set by Ray in its workers
_SOCKET, _RECORD = "socket", "process.json"
_STARTED, _STOP, _TERMINATE = b"s", b"q", b"t"
_START_LIMIT = 60.0  # seconds
_ANSWER_PATIENCE = 60.0  # seconds; a standby that has just been started is importing
_END_PATIENCE = 5.0  # seconds
_WATCH_INTERVAL = 1.0  # seconds
_AT_ONCE = timedelta(0)  # who sends SIGTERM kills soon after
_SETTINGS: TypeAdapter[ReplicaSettings] = TypeAdapter(ReplicaSettings)


@dataclass(frozen=True)
class Child:
    """The far end of a forked puller."""

    connection: socket.socket

    def wait(self) -> None:
        """Until it has ended."""
        with suppress(OSError), self.connection:
            while self.connection.recv(1):
                pass

    def stop(self) -> None:
        """Tell it to finish or hand back its jobs, and wait until it has ended."""
        self._tell(_STOP)

    def terminate(self) -> None:
        """As `stop`, but hand back all that is not drawn yet."""
        self._tell(_TERMINATE)

    def _tell(self, word: bytes) -> None:
        with suppress(OSError):  # it has ended already
            self.connection.sendall(word)
        self.wait()


def fork_puller(spec: AppSpec, settings: ReplicaSettings, *, born: float) -> Child | None:
    """A puller in a child of this node's standby, which is started if need be.

    Returns:
        None if the standby does not answer, or outside Ray.
    """
    if _RAYLET not in os.environ:
        return None
    request = json.dumps(
        {
            "spec": spec.to_json(),
            "settings": _SETTINGS.dump_json(settings).decode(),
            "born": born,  # the clock is the machine's
            "environment": dict(os.environ),
        }
    ).encode()
    for _ in range(2):  # the standby may have been killed a moment ago
        try:
            ensure_standby()
            return _ask(request)
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("no replica from the standby process (%s)", error)
            _await_end()
    return None


def _await_end() -> None:
    """Until a standby that was killed has ended: for a moment it runs but does not listen."""
    if standby := Daemon.find(_folder() / _RECORD):
        with suppress(psutil.Error):
            psutil.Process(standby.pid).wait(_END_PATIENCE)


def _ask(request: bytes) -> Child:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(_ANSWER_PATIENCE)
        connection.connect(str(_folder() / _SOCKET))
        # Its output goes where this process' goes: into the replica's log.
        socket.send_fds(connection, [struct.pack("<I", len(request))], [1, 2])
        connection.sendall(request)
        if connection.recv(1) != _STARTED:
            raise ConnectionError("it ended")
        connection.settimeout(None)
    except OSError:
        connection.close()
        raise
    return Child(connection)


def ensure_standby() -> None:
    """Start the standby process of this Ray node unless it runs; called in any of its workers."""
    folder = _folder()
    with (folder / "lock").open("w") as lock, (folder / "log").open("ab") as output:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if Daemon.find(folder / _RECORD) is None:
            # Returns when the standby listens: replicas that come now wait for its imports.
            subprocess.run(
                [sys.executable, "-m", "workers.standby"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **ENVIRONMENT},
                timeout=_START_LIMIT,
                check=True,
            )


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    raylet, folder = psutil.Process(int(os.environ[_RAYLET])), _folder()
    (folder / _SOCKET).unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / _SOCKET))
    server.listen(64)
    if standby := os.fork():
        Daemon.of(standby).remember(folder / _RECORD)
        return 0  # so that it is nobody's child: a Ray worker that ends kills its children
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are nobody's to wait for
    import_libraries()
    log.info("ready")
    while raylet.is_running():
        ready, _, _ = select.select([server], [], [], _WATCH_INTERVAL)
        if ready:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _run_child(connection)
            connection.close()
    shutil.rmtree(folder)
    return 0


def _run_child(connection: socket.socket) -> NoReturn:
    """Pull until told to stop, or until the replica that asked is gone."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        request = _receive(connection)
        os.environ.clear()
        os.environ.update({**request["environment"], **ENVIRONMENT})
        settings = _SETTINGS.validate_json(request["settings"])
        spec = AppSpec.from_json(request["spec"])
        give_way(spec)
        puller = Puller(spec, settings, born=request["born"])

        def terminate(_signal: int, _frame: FrameType | None) -> None:
            _start_leaving(puller, _AT_ONCE)

        signal.signal(signal.SIGTERM, terminate)
        connection.sendall(_STARTED)
        while word := connection.recv(1):
            _start_leaving(puller, settings.stop_grace if word == _STOP else _AT_ONCE)
        # Killed, perhaps for the memory that a job of ours took: that must count.
        puller.die("the process of Serve's replica is gone")
        threading.Event().wait()  # somebody else is ending this process already
    except BaseException:
        log.exception("the child of the standby process failed")
    finally:
        os._exit(1)


def _start_leaving(puller: Puller, grace: timedelta) -> None:
    """Stop on a thread of its own: a second word, which allows less time, must still be heard."""
    threading.Thread(target=_leave, args=(puller, grace), name="leave", daemon=True).start()


def _leave(puller: Puller, grace: timedelta) -> NoReturn:
    code = 1
    try:
        puller.stop(grace)
        code = 0
    finally:
        logging.shutdown()
        os._exit(code)


def _receive(connection: socket.socket) -> Mapping[str, Any]:
    length, output, _, _ = socket.recv_fds(connection, 4, 2)
    for mine, theirs in enumerate(output, start=1):
        os.dup2(theirs, mine)
        os.close(theirs)
    (size,) = struct.unpack("<I", length)
    text = b""
    while len(text) < size:
        piece = connection.recv(size - len(text))
        if not piece:
            raise ConnectionError("the replica ended before it had asked")
        text += piece
    return json.loads(text)


def _folder() -> Path:
    """Of this user and this Ray node, readable by nobody else."""
    name = f"sdserve-standby-{os.getuid()}-{os.environ[_RAYLET]}"
    folder = Path(tempfile.gettempdir()) / name
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
