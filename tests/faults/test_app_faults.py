"""Apps that are full, break, heal and go away while jobs of theirs wait and run, at the store."""

import time
from dataclasses import replace

import pytest

from sdserve.errors import StoreFullError
from sdserve.jobs import JobFailure
from sdserve.operations import Drain
from sdserve.store import RedisJobStore, connect
from tests.faults.checker import check
from tests.faults.history import History, Struck
from tests.faults.light_stack import APPS, LightStack
from tests.faults.redis_process import RedisProcess
from tests.values import JOB_TTL, submit

pytestmark = pytest.mark.faults

JOBS = 120
(APP, _) = APPS


def test_a_full_redis_refuses_new_jobs_and_ends_those_it_has(
    server: RedisProcess, history: History
) -> None:
    refused = 0
    with server.client() as redis, LightStack(history, server.url, seed=10) as stack:

        def fill() -> None:
            nonlocal refused
            fault = Struck(at=time.time(), kind="redis full", loses_replica=True)
            history.add(fault)
            redis.config_set("maxmemory", 1)
            # A lease lasts a second: of a replica that waits to store a picture it runs out.
            with connect(server.url) as client, pytest.raises(StoreFullError):
                RedisJobStore(client).run(submit(app=APP))
            refused += 1
            time.sleep(stack.random.uniform(0.1, 0.9))
            redis.config_set("maxmemory", 0)
            history.add(replace(fault, at=time.time(), is_over=True))

        stack.until_accepted(JOBS, fill, 0.5)
        facts = stack.settle()
    assert check(facts) == []
    assert refused >= 2
    assert any(asked.status == 503 for asked in facts.asked)


@pytest.mark.parametrize("code", ["app_broken", "app_gone"])
def test_an_app_that_breaks_or_is_deleted_ends_its_jobs_with_the_reason(
    server: RedisProcess, history: History, code: str
) -> None:
    """And no other app's. It heals by a redeploy, as often as one likes."""
    with connect(server.url) as redis, LightStack(history, server.url, seed=11) as stack:
        store = RedisJobStore(redis)
        failure = JobFailure(code=code, message="the reason")

        def break_() -> None:
            history.add(Struck(at=time.time(), kind=code, app=APP, ends_jobs=code))
            store.drain(Drain(app=APP, failure=failure, job_ttl=JOB_TTL, broken=True))
            time.sleep(stack.random.uniform(0.05, 0.3))
            store.heal(APP)

        stack.until_accepted(JOBS, break_, 0.3)
        facts = stack.settle()
    assert check(facts) == []
    # Whether jobs were waiting at that moment is chance; that new ones were refused is not.
    refused = [asked for asked in facts.asked if asked.status == 503]
    assert {asked.app for asked in refused} == {APP}
