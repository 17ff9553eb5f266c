"""What all tests share: a real Redis of our own, and the order of acceptance tests."""

import signal
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
from redis import Redis

from sdserve.redis_server import ensure_redis, stop_redis
from sdserve.settings import Settings
from sdserve.store import connect
from workers import RQ_PREFIX

# Importing workers sets RQ's key prefix, which must happen before any test module imports rq.
assert RQ_PREFIX

# A shell that starts us in the background has it ignored, which the commands we test would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

ACCEPTANCE = Path(__file__).parent / "acceptance"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Acceptance tests tell a story: inside a module they run as written.

    pytest-randomly has shuffled before this (it wraps the hook); each module keeps its new place.
    """
    for module, group in groupby(list(enumerate(items)), key=lambda place: place[1].path):
        if module.is_relative_to(ACCEPTANCE):
            places, tests = zip(*group, strict=True)
            items[places[0] : places[-1] + 1] = sorted(tests, key=_line)


def _line(item: pytest.Item) -> int:
    return item.location[1] or 0


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
