"""The clock of the RQ workers on a real server."""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from sdserve import keys
from sdserve.operations import Cancel
from sdserve.store import RedisJobStore
from tests.values import APP, submit
from tests.waiting import until
from workers.chores import CHORES, LONGEST_SLEEP, Chore, Clock, do_due
from workers.task_queue import QueueName

pytestmark = pytest.mark.integration

OFTEN, SELDOM = timedelta(milliseconds=50), timedelta(hours=1)


@contextmanager
def full(redis: Redis) -> Generator[None]:
    before: Any = redis.config_get("maxmemory")
    redis.config_set("maxmemory", 1)
    try:
        yield
    finally:
        redis.config_set("maxmemory", before["maxmemory"])


def counted(done: Counter[str], name: str, interval: timedelta) -> Chore:
    return Chore(name=name, interval=interval, work=lambda _redis: done.update([name]))


def test_for_each_turn_one_of_many_workers_is_first(redis: Redis) -> None:
    done = Counter[str]()
    for _ in range(3):
        do_due(redis, [counted(done, "a", SELDOM)])
    assert done == {"a": 1}


def test_a_full_redis_gives_turns(redis: Redis) -> None:
    done = Counter[str]()
    with full(redis):
        for _ in range(3):
            do_due(redis, [counted(done, "a", SELDOM)])
    assert done == {"a": 1}


def test_what_a_full_redis_takes_no_task_for_the_clock_does_itself(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setattr("workers.tasks.REMEMBERED", timedelta(minutes=-1))  # all
    delivered = list[str]()
    monkeypatch.setattr("workers.webhooks.deliver", delivered.append)
    store = RedisJobStore(redis)
    gone = store.run(submit(webhook="https://example.org/"))
    store.run(Cancel(app=APP, job_id=gone.job_id, job_ttl=timedelta(0)))
    redis.delete(keys.JOB + gone.job_id)
    with full(redis):
        do_due(redis, CHORES[QueueName.SIDE_WORK])
        do_due(redis, CHORES[QueueName.WEBHOOKS])
    assert redis.zscore(keys.INDEX, gone.job_id) is None
    assert delivered == [f"job_{gone.job_id}_cancelled"]


def test_each_chore_has_its_own_interval(redis: Redis) -> None:
    done = Counter[str]()
    clock = Clock(redis, [counted(done, "seldom", SELDOM), counted(done, "often", OFTEN)])
    clock.start()
    try:
        until(lambda: done["often"] >= 5)
    finally:
        clock.stop()
        clock.join()
    assert done["seldom"] == 1


def test_the_clock_sleeps_until_the_next_turn(redis: Redis) -> None:
    done = Counter[str]()
    minute = timedelta(minutes=1)
    assert do_due(redis, [counted(done, "seldom", minute)]) == LONGEST_SLEEP
    sleep = do_due(redis, [counted(done, "soon", timedelta(seconds=9)), counted(done, "b", minute)])
    assert 5 < sleep <= 9


def test_a_chore_that_fails_takes_nothing_from_the_others(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_redis: Redis) -> None:
        raise LookupError("no luck")

    done = Counter[str]()
    do_due(redis, [Chore(name="bad", interval=SELDOM, work=fail), counted(done, "good", SELDOM)])
    assert done == {"good": 1}
    assert "bad failed" in caplog.text
    assert "no luck" in caplog.text


def test_the_clock_goes_on_after_a_time_without_redis(
    redis: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.chores.REDIS_RETRY", 0.01)
    turns = Counter[str]()

    def work(_redis: Redis) -> None:
        turns["a"] += 1
        if turns["a"] == 1:
            raise RedisConnectionError("away")

    clock = Clock(redis, [Chore(name="a", interval=OFTEN, work=work)])
    clock.start()
    try:
        until(lambda: turns["a"] >= 3)
    finally:
        clock.stop()
        clock.join()
    assert "no chores now: away" in caplog.text
