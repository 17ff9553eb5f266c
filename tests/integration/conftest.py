"""The two job stores, for tests that hold for both."""

import pytest
from redis import Redis

from sdserve.store import RedisJobStore
from sdserve.testing import InMemoryJobStore
from tests.store_world import World


@pytest.fixture(params=["redis", "memory"])
def world(request: pytest.FixtureRequest) -> World:
    if request.param == "memory":
        return World(InMemoryJobStore(), None)
    redis: Redis = request.getfixturevalue("redis")
    return World(RedisJobStore(redis), redis)
