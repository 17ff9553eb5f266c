"""Bad weather between the product and Redis: held, lost, slow and dripping bytes, under load."""

import threading
import time
from dataclasses import replace

import pytest

from sdserve.errors import StoreUnavailableError
from sdserve.jobs import new_job_id
from sdserve.operations import Admission
from sdserve.store import CONNECT_TIMEOUT, REPLY_TIMEOUT, RedisJobStore, connect
from tests.faults.checker import check
from tests.faults.history import History, Struck
from tests.faults.light_stack import APPS, LightStack
from tests.faults.redis_process import RedisProcess
from tests.faults.tcp_proxy import CALM, TcpProxy, Weather
from tests.values import submit

pytestmark = pytest.mark.faults

JOBS = 80
(APP, _) = APPS

WEATHERS = {
    "black hole to Redis": Weather(hold_requests=True),
    "black hole from Redis": Weather(hold_replies=True),
    "lost replies": Weather(cut_replies=True),
    "latency": Weather(delay=0.1),
    "slow drip": Weather(drip=200),
}


@pytest.mark.parametrize("kind", WEATHERS)
def test_bad_weather_loses_and_changes_nothing(
    server: RedisProcess, history: History, kind: str
) -> None:
    with TcpProxy(server.port) as proxy:
        stack = LightStack(history, proxy.url, seed=9, direct_url=server.url)

        def strike() -> None:
            fault = Struck(at=time.time(), kind=kind, loses_replica=True)
            history.add(fault)
            proxy.set(WEATHERS[kind])
            time.sleep(stack.random.uniform(0.1, 0.9))
            proxy.set(CALM)
            # A claim whose reply is lost is repeated at once: in a lease's time both may be lost.
            history.add(replace(fault, at=time.time(), is_over=True))

        with stack:
            stack.until_accepted(JOBS, strike, 0.5)
            facts = stack.settle()
    assert check(facts) == []
    assert len(facts.faults) >= 2


def test_a_black_hole_is_an_error_within_the_time_outs(server: RedisProcess) -> None:
    with TcpProxy(server.port) as proxy, connect(proxy.url) as redis:
        store = RedisJobStore(redis)
        store.run(submit(app=APP))
        proxy.set(Weather(hold_requests=True))
        start = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            store.run(submit(app=APP))
        # Two tries, each with a connection of its own, and a loaded machine.
        assert time.monotonic() - start < 2 * (CONNECT_TIMEOUT + REPLY_TIMEOUT) + 5


def test_a_submission_whose_reply_was_lost_is_repeated_to_one_job(server: RedisProcess) -> None:
    with TcpProxy(server.port) as proxy, connect(proxy.url) as redis:
        store = RedisJobStore(redis)
        store.run(submit(app=APP))  # connected, script loaded
        operation = submit(app=APP, job_id=new_job_id(), idempotency_key="k")
        proxy.set(Weather(cut_replies=True))
        with pytest.raises(StoreUnavailableError):
            store.run(operation)
        proxy.set(CALM)
        again = store.run(replace(operation, job_id=new_job_id()))
    assert (again.admission, again.job_id) == (Admission.DUPLICATE, operation.job_id)


def test_a_hundred_threads_share_one_slow_client(server: RedisProcess) -> None:
    """Nobody gets another's reply, also when time-outs break connections in the middle of one."""
    with TcpProxy(server.port) as proxy, connect(proxy.url) as redis:
        store = RedisJobStore(redis)
        wrong, unavailable = list[str](), list[str]()

        def go(number: int) -> None:
            for round_ in range(5):
                job_id = new_job_id()
                operation = submit(
                    app=APP, job_id=job_id, idempotency_key=f"{number} {round_}", queue_limit=10**6
                )
                try:
                    told = store.run(operation).job_id
                except StoreUnavailableError:
                    unavailable.append(job_id)
                else:
                    wrong.extend([told] if told != job_id else [])

        threads = [threading.Thread(target=go, args=(number,)) for number in range(100)]
        for thread in threads:
            thread.start()
        for weather in (Weather(hold_replies=True), CALM, Weather(cut_replies=True), CALM):
            proxy.set(weather)
            time.sleep(0.3)
        for thread in threads:
            thread.join()
    assert wrong == []
    assert len(unavailable) < 500
