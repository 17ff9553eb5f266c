"""Replicas that die, freeze and come back, poison jobs, duplicates and cancels, at the store."""

import threading
import time
from typing import Any

import pytest

from sdserve import keys
from sdserve.jobs import JobStatus
from sdserve.operations import Cancel, Claim, Ending, ViewJob
from sdserve.store import RedisJobStore, connect
from tests.faults.checker import FINAL, check
from tests.faults.history import Asked, History
from tests.faults.light_client import LightClient
from tests.faults.light_replica import LEASE, Reaper
from tests.faults.light_stack import APPS, LightStack
from tests.faults.redis_process import RedisProcess
from tests.values import JOB_TTL, METRICS, finish, submit

pytestmark = pytest.mark.faults

JOBS = 150
(APP, _) = APPS


@pytest.mark.parametrize("reapers", [1, 3])
def test_killed_and_frozen_replicas_lose_and_change_nothing(
    server: RedisProcess, history: History, reapers: int
) -> None:
    with LightStack(history, server.url, seed=1, reapers=reapers) as stack:
        stack.until_accepted(JOBS, stack.kill_replica, 0.3)
        facts = stack.settle()
    assert check(facts) == []
    jobs = facts.snapshot.jobs.values()
    assert any(job.attempt > 1 and job.status == "succeeded" for job in jobs)
    assert {job.error for job in jobs} == {None, "worker_lost"}  # the poison jobs


def test_without_a_reaper_jobs_wait_for_one(server: RedisProcess, history: History) -> None:
    with LightStack(history, server.url, seed=2, reapers=0) as stack:
        stack.until_accepted(40, stack.kill_replica, 0.1)
        reaper = Reaper(APPS, server.url)
        reaper.start()
        facts = stack.settle()
        reaper.stop()
        reaper.join()
    assert check(facts) == []


def test_a_dead_replicas_job_runs_again_within_the_lease_and_a_second(
    server: RedisProcess,
) -> None:
    redis = connect(server.url)
    store = RedisJobStore(redis)
    job_id = store.run(submit(app=APP)).job_id
    store.run(Claim(app=APP, replica="dies", count=1, lease=LEASE))
    ((_, lease_end),) = _scores(redis.zrange(keys.LEASE + APP, 0, -1, withscores=True))
    reaper = Reaper(APPS, server.url)
    reaper.start()
    again = Claim(app=APP, replica="lives", count=1, lease=LEASE)
    deadline = time.monotonic() + 60
    while not (jobs := store.run(again)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    reaper.stop()
    reaper.join()
    assert (jobs[0].id, jobs[0].fence) == (job_id, 2)
    started = store.run(ViewJob(job_id=job_id)).started_at
    assert started is not None
    # By the server's clock, so a slow test machine is only seen in the reaper's own pace.
    assert 0 <= started.timestamp() - lease_end / 1000 < 1
    redis.close()


def test_sixty_clients_with_one_key_get_one_job(server: RedisProcess, history: History) -> None:
    clients = [LightClient(f"{n}", APPS, server.url, history) for n in range(60)]
    together = threading.Barrier(len(clients))

    def go(number: int, client: LightClient) -> None:
        together.wait(30)
        # Three bodies compete for the key: the first wins, the others are refused.
        client.submit(APP, "innocent", number % 3, "the key")

    threads = [threading.Thread(target=go, args=pair) for pair in enumerate(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asked = [event for event in history.events() if isinstance(event, Asked)]
    accepted = [event for event in asked if event.status == 202]
    assert len({event.job_id for event in accepted}) == 1
    assert len({event.body for event in accepted}) == 1
    assert len(accepted) == 20
    assert {event.status for event in asked} == {202, 422}
    for client in clients:
        client.stop()
        client.run()  # closes its connection


def test_a_cancel_that_races_a_finish_has_one_winner(server: RedisProcess) -> None:
    redis, racing = connect(server.url), connect(server.url)
    store, other = RedisJobStore(redis), RedisJobStore(racing)
    outcomes = set[tuple[JobStatus | None, Ending, JobStatus]]()
    for round_ in range(300):
        job_id = store.run(submit(app=APP)).job_id
        (job,) = store.run(Claim(app=APP, replica="r", count=1, lease=LEASE))
        names = [keys.result(job.id, job.fence, 0)]
        operation = finish(
            job.id, job.fence, JobStatus.SUCCEEDED, app=APP, metrics=METRICS, result_keys=names,
            image_seeds=[7],
        )  # fmt: skip
        answers = list[Any]()
        start = threading.Barrier(2)

        def cancel(job_id: str = job_id, start: Any = start, answers: Any = answers) -> None:
            start.wait(30)
            answers.append(other.run(Cancel(app=APP, job_id=job_id, job_ttl=JOB_TTL)))

        thread = threading.Thread(target=cancel)
        thread.start()
        start.wait(30)
        time.sleep(round_ % 3 * 0.0002)
        ending = store.finish(operation, [b"image"])
        thread.join()
        after = store.run(ViewJob(job_id=job_id))
        outcomes.add((answers[0], ending, after.status))
        assert after.status in FINAL
        assert bool(redis.exists(*names)) == (after.status is JobStatus.SUCCEEDED)
    assert outcomes <= {
        (JobStatus.RUNNING, Ending.CANCELLED, JobStatus.CANCELLED),
        (JobStatus.SUCCEEDED, Ending.FINISHED, JobStatus.SUCCEEDED),
    }
    redis.close()
    racing.close()


def _scores(pairs: Any) -> list[tuple[bytes, float]]:
    return pairs
