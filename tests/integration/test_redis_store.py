"""What only a server can show: scripts that are forgotten, a server that is away or full."""

from dataclasses import replace
from typing import Any

import pytest
from redis import Redis

from sdserve import keys
from sdserve.apps import AppState
from sdserve.errors import StoreFullError, StoreUnavailableError
from sdserve.jobs import JobFailure, JobStatus, Preview
from sdserve.news import Change, read_news
from sdserve.operations import Drain, Ending
from sdserve.store import UNCLAIMED_RESULT_TTL, RedisJobStore, connect
from tests.store_world import World
from tests.values import APP, JOB_TTL, submit
from tests.waiting import LIMIT

pytestmark = pytest.mark.integration


def test_scripts_survive_a_flush_of_the_script_cache(redis: Redis) -> None:
    world = World(RedisJobStore(redis), redis)
    world.submit()
    redis.script_flush()
    assert world.submit().ahead == 1


def test_usage_is_kept_for_400_days(redis: Redis) -> None:
    world = World(RedisJobStore(redis), redis)
    world.cancel(world.submit().job_id)
    (key,) = redis.scan_iter(match=keys.USAGE + "*")
    ttl: Any = redis.ttl(key)
    assert 399 * 86400 < ttl <= 400 * 86400


def test_a_server_that_is_away_is_one_clear_error() -> None:
    store = RedisJobStore(connect("redis://127.0.0.1:1"))
    with pytest.raises(StoreUnavailableError, match="REDIS_URL"):
        store.run(submit())


def test_a_full_server_takes_no_job_but_lets_those_it_has_end(redis: Redis) -> None:
    world = World(RedisJobStore(redis), redis)
    for _ in range(3):
        world.submit()
    done, lost, kept = world.claim(), world.claim(), world.claim()
    world.succeed(kept)
    redis.delete(*world.view(kept.id).result_keys)  # so that they are to be stored again
    before: Any = redis.config_get("maxmemory")
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreFullError):
            world.submit()
        with pytest.raises(StoreFullError):
            world.succeed(done)
        assert world.view(done.id).status is JobStatus.RUNNING
        assert world.beat(done)
        world.cancel(done.id)
        # Nobody needs these images, so nobody waits for room for them.
        assert world.succeed(done) is Ending.CANCELLED
        assert world.succeed(kept) is Ending.FINISHED
        assert world.succeed(replace(lost, fence=lost.fence - 1)) is Ending.LOST
    finally:
        redis.config_set("maxmemory", before["maxmemory"])
    assert world.view(done.id).status is JobStatus.CANCELLED
    assert world.view(lost.id).status is JobStatus.RUNNING


class Interrupted(BaseException):
    """A time-out of RQ, or SIGINT: it comes wherever a thread is."""


def test_an_answer_under_way_is_never_taken_for_another_commands(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisJobStore(redis)
    store.run(submit())
    redis.client_pause(500)  # milliseconds: what is asked now is answered then

    def interrupted(*_: object, **__: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Redis, "parse_response", interrupted)
        with pytest.raises(Interrupted):
            store.run(submit())
    assert store.app_status(APP).queued >= 1


def test_a_job_without_a_version_blocks_no_queue(redis: Redis) -> None:
    world = World(RedisJobStore(redis), redis)

    def forget(job_id: str) -> None:
        redis.hdel(keys.JOB + job_id, "version")

    forget(world.submit().job_id)
    job = world.claim()
    forget(job.id)
    world.release(job)
    forget(job.id)
    world.cancel(job.id)
    seen = world.view(job.id)
    assert (seen.status, seen.version) == (JobStatus.CANCELLED, 1)


def test_a_finish_that_is_sent_again_leaves_the_images_their_time(redis: Redis) -> None:
    world = World(RedisJobStore(redis), redis)
    world.submit()
    job = world.claim()
    assert [world.succeed(job), world.succeed(job)] == [Ending.FINISHED] * 2
    (name,) = world.view(job.id).result_keys
    ttl: Any = redis.ttl(name)
    assert ttl > UNCLAIMED_RESULT_TTL.total_seconds()


def test_nothing_is_left_when_all_has_ended(redis: Redis) -> None:
    """No key without a TTL grows with the jobs that have been."""
    world = World(RedisJobStore(redis), redis)
    for client in ("a", "b"):
        world.submit(client=client, idempotency_key="k")
    for _ in range(2):
        world.succeed(world.claim())
    assert redis.hgetall(keys.LOAD) == {b"bytes": b"6"}
    assert redis.exists(keys.QUEUE + APP, keys.LEASE + APP, keys.SHARES + APP) == 0
    for pattern in (keys.JOB, keys.IDEMPOTENCY, keys.RESULT + "01", keys.WAKE):
        assert all(redis.ttl(key) > 0 for key in redis.scan_iter(pattern + "*"))


def test_whoever_listens_hears_of_every_change_once(redis: Redis) -> None:
    """And of nothing else: each message costs every HTTP process something."""
    world = World(RedisJobStore(redis), redis)
    with redis.pubsub() as channel:
        channel.subscribe(keys.CHANNEL + APP)
        channel.get_message(timeout=LIMIT)

        def heard() -> list[tuple[Change, str]]:
            redis.publish(keys.CHANNEL + APP, "end preview")
            found = list[tuple[Change, str]]()
            while True:
                message: Any = channel.get_message(timeout=LIMIT)
                news = read_news(message["channel"], message["data"])
                assert news.app == APP
                if news.job_id == "end":
                    return found
                found.append((news.change, news.job_id))

        first, second = world.submit().job_id, world.submit().job_id
        assert heard() == [(Change.JOB, first), (Change.JOB, second)]
        ahead = world.submit(priority=1).job_id
        assert heard() == [(Change.JOB, ahead), (Change.APP, "")]
        job = world.claim()
        assert heard() == [(Change.JOB, ahead), (Change.APP, "")]
        world.beat(job, step=1)
        assert heard() == [(Change.APP, ""), (Change.JOB, ahead)]
        world.beat(job, step=1)
        assert heard() == []
        world.show_preview(job, Preview(step=1, number=0, image=b"webp"))
        assert heard() == [(Change.PREVIEW, ahead)]
        world.beat(job, step=1, state=AppState.LOADING, phase="reading file 43%")
        assert heard() == [(Change.APP, "")]
        world.release(job)
        assert heard() == [(Change.JOB, ahead), (Change.APP, "")]
        world.cancel(ahead)
        world.cancel(ahead)
        assert heard() == [(Change.ENDED, ahead), (Change.APP, "")]
        world.succeed(world.claim())
        assert heard() == [(Change.JOB, first), (Change.APP, ""), (Change.ENDED, first)]
        world.store.leave(APP, "r1")
        assert heard() == [(Change.APP, "")]
        failure = JobFailure(code="app_broken", message="no such file")
        world.store.drain(Drain(app=APP, failure=failure, job_ttl=JOB_TTL, broken=True))
        # The second round that finds nothing repeats that the app is broken.
        assert heard() == [(Change.ENDED, second), (Change.APP, ""), (Change.APP, "")]
