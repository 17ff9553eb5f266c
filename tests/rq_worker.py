"""A worker of ours in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.waiting import LIMIT
from workers.task_queue import QueueName


@contextmanager
def working(
    redis_url: str,
    log: Path = Path(os.devnull),
    queue: QueueName = QueueName.SIDE_WORK,
    **environment: str,
) -> Generator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.main", queue],
            env={**os.environ, "REDIS_URL": redis_url, **environment},
            stderr=output,
        )
    try:
        yield process
    finally:
        # Not killed: the task it works on must not end in the next test's database.
        process.terminate()
        process.wait(LIMIT)
