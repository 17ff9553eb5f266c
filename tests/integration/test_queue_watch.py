"""What the autoscaling policies see; and looking at apps without work costs next to nothing."""

from datetime import timedelta
from typing import Any

import pytest
from redis import Redis

from deploy_scripts import queue_watch
from deploy_scripts.queue_watch import QueueWatch
from sdserve.operations import Cancel
from sdserve.store import RedisJobStore
from tests.values import spec, submit

pytestmark = pytest.mark.integration

APPS = [f"sd-{number}" for number in range(30)]


@pytest.fixture
def store(redis: Redis) -> RedisJobStore:
    """With apps that are all deployed and have nothing to do."""
    store = RedisJobStore(redis)
    for app in APPS:
        store.register_app(spec(name=app))
    return store


@pytest.fixture
def watch(redis_url: str, store: RedisJobStore, monkeypatch: pytest.MonkeyPatch) -> QueueWatch:
    """Which has looked once, in a cluster with room for all."""
    monkeypatch.setattr(queue_watch.ray, "available_resources", lambda: {"CPU": 99.0, "GPU": 9.0})
    watch = QueueWatch(redis_url)
    for app in APPS:
        watch.follow(spec(name=app))
    watch.look()
    return watch


def asked(redis: Redis) -> int:
    """How many commands Redis has answered."""
    statistics: Any = redis.info("stats")
    return statistics["total_commands_processed"]


def test_a_job_is_seen_at_the_next_look_and_so_is_its_end(
    store: RedisJobStore, watch: QueueWatch
) -> None:
    job = submit(app=APPS[7])
    store.run(job)
    watch.look()
    queued = {app: status.queued for app in APPS if (status := watch.status(app))}
    assert queued == {app: int(app == APPS[7]) for app in APPS}
    store.run(Cancel(app=APPS[7], job_id=job.job_id, job_ttl=timedelta(hours=1)))
    watch.look()
    status = watch.status(APPS[7])
    assert status is not None
    assert status.queued == 0


def test_apps_without_work_are_not_asked_for_one_by_one(redis: Redis, watch: QueueWatch) -> None:
    before = asked(redis)
    watch.look()
    # This and a new connection's greetings.
    assert asked(redis) - before < len(APPS) / 3


def test_a_wish_for_a_replica_is_seen_a_little_later(
    store: RedisJobStore, watch: QueueWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.wish_replica(APPS[3], 60)
    monkeypatch.setattr(queue_watch, "QUIET_INTERVAL", 0.0)
    watch.look()
    status = watch.status(APPS[3])
    assert status is not None
    assert status.wished


def test_an_app_that_is_deleted_is_forgotten(store: RedisJobStore, watch: QueueWatch) -> None:
    store.unregister_app(APPS[0])
    watch.look()
    assert watch.status(APPS[0]) is None
    assert watch.status(APPS[1]) is not None
