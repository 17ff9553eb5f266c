"""A background process that outlives the command that started it.

One record file per process, so that it is found again and stopped by its own pid only.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import psutil


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """A process of ours. Pids are reused, so the start time belongs to its name."""

    pid: int
    started: float  # Unix seconds, as the operating system tells it

    @classmethod
    def start(
        cls, command: Sequence[str], *, record: Path, log: Path, environment: Mapping[str, str]
    ) -> Self:
        """Start `command` in a session of its own and remember it in `record`."""
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 (our own commands, no shell)
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=dict(environment),
            )
        daemon = cls.of(process.pid)
        daemon.remember(record)
        return daemon

    @classmethod
    def of(cls, pid: int) -> Self:
        """A process that runs."""
        return cls(pid=pid, started=psutil.Process(pid).create_time())

    def remember(self, record: Path) -> None:
        """Write it down for `find`."""
        record.write_text(json.dumps(asdict(self)))

    @classmethod
    def find(cls, record: Path) -> Self | None:
        """The process remembered in `record`, if it still runs."""
        try:
            daemon = cls(**json.loads(record.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return daemon if daemon.is_running else None

    @property
    def is_running(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return (
                abs(process.create_time() - self.started) < 1
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.NoSuchProcess:
            return False

    def stop(self, *, patience: float) -> None:
        """SIGTERM; after `patience` seconds SIGKILL, also to the children that are left."""
        if not self.is_running:
            return
        with suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
            process = psutil.Process(self.pid)
            family = [process, *process.children(recursive=True)]
            process.terminate()
            _, left = psutil.wait_procs(family, timeout=patience)
            for survivor in left:
                with suppress(psutil.NoSuchProcess):
                    survivor.kill()
            psutil.wait_procs(left, timeout=10)
