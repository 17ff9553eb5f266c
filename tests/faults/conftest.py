"""A Redis and a history for each test of this folder, that it may treat as it likes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.history import History
from tests.faults.redis_process import RedisProcess


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisProcess]:
    server = RedisProcess(tmp_path / "redis")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    """Pytest keeps the folders of the last runs, this file with them."""
    history = History(tmp_path / "history.jsonl")
    yield history
    history.close()
