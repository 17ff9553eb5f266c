"""The processes of a running stack, by what they are."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from workers.task_queue import QueueName


class Processes:
    """Everything below the Ray head of one state folder; processes come and go."""

    def __init__(self, state: Path) -> None:
        self.state = state

    @property
    def ray_head(self) -> int:
        return json.loads((self.state / "ray.json").read_text())["pid"]

    def rq_worker(self, queue: QueueName) -> int:
        return json.loads((self.state / f"rq-{queue}.json").read_text())["pid"]

    def all(self) -> list[psutil.Process]:
        return [process for process, _ in _below(self.ray_head)]

    def titled(self, *words: str) -> list[psutil.Process]:
        """Ray's workers whose title has all these words, e.g. ServeController."""
        return titled_below(self.ray_head, *words)

    def named(self, name: str) -> list[psutil.Process]:
        """Those whose program has this name, e.g. haproxy, or, as Ray's have, this title."""
        words = ((process, title.split(" ")) for process, title in _below(self.ray_head))
        return [process for process, (program, *_) in words if Path(program).name == name]

    def raylet(self) -> int | None:
        """Ray's agent of this node."""
        names = {process.pid: name for process, name in _below(self.ray_head)}
        return next((pid for pid, name in names.items() if "/raylet " in name), None)


def titled_below(parent: int, *words: str) -> list[psutil.Process]:
    """As `Processes.titled`, of another node."""
    return [
        process
        for process, title in _below(parent)
        if title.startswith("ray::") and all(word in title for word in words)
    ]


def _below(parent: int) -> Iterator[tuple[psutil.Process, str]]:
    for process in psutil.Process(parent).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            yield process, " ".join(process.cmdline())


def kill(pid: int) -> bool:
    """kill -9. False: it had ended by itself."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
