"""Fixtures of all tests: a real Redis of our own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from sdserve.redis_server import ensure_redis, stop_redis
from sdserve.settings import Settings
from sdserve.store import connect


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("redis")
    settings = Settings(redis_url=None, state_dir=folder)
    yield ensure_redis(settings)
    stop_redis(settings)


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """An empty database."""
    client = connect(redis_url, reply_timeout=5)
    client.flushdb()
    yield client
    client.close()
