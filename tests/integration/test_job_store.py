"""The promises of the job store's scripts, on a real server."""

import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from redis import Redis

from sdserve import keys
from sdserve.apps import AppState, ReplicaPresence
from sdserve.errors import JobExpiredError, JobNotFoundError, StoreUnavailableError
from sdserve.jobs import ClaimedJob, Job, JobFailure, JobStatus, new_job_id
from sdserve.operations import (
    Admission,
    Beat,
    Cancel,
    Claim,
    Drain,
    Ending,
    JobProgress,
    Pulse,
    Reap,
    Release,
    ViewJob,
)
from sdserve.store import RedisJobStore, connect
from tests.values import APP, JOB_TTL, LEASE, METRICS, finish, spec, submit

pytestmark = pytest.mark.integration

RUN_OUT = timedelta(milliseconds=1)


@pytest.fixture
def store(redis: Redis) -> RedisJobStore:
    return RedisJobStore(redis)


def view(store: RedisJobStore, job_id: str) -> Job:
    return store.run(ViewJob(job_id=job_id))


def claim(store: RedisJobStore, lease: timedelta = LEASE) -> ClaimedJob:
    (job,) = store.run(Claim(app=APP, replica="r1", count=1, lease=lease))
    return job


def replica(name: str, state: AppState, store: RedisJobStore, lease: timedelta = LEASE) -> None:
    presence = ReplicaPresence(id=name, state=state, phase="", pid=1, node="n")
    store.run(Beat(app=APP, presence=presence, slots=1, lease=lease, jobs=[]))


def reap(store: RedisJobStore) -> None:
    store.run(Reap(app=APP, job_ttl=JOB_TTL))


def beat(
    store: RedisJobStore, *jobs: ClaimedJob, state: AppState = AppState.READY, slots: int = 1
) -> list[Pulse]:
    presence = ReplicaPresence(id="r1", state=state, phase="ready", pid=1, node="n")
    progress = [
        JobProgress(job_id=job.id, fence=job.fence, step=3, phase="step 3 of 20") for job in jobs
    ]
    return store.run(Beat(app=APP, presence=presence, slots=slots, lease=LEASE, jobs=progress))


def test_a_submitted_job_is_queued_with_its_position(store: RedisJobStore) -> None:
    first, second = store.run(submit()), store.run(submit())
    assert (first.admission, second.admission) == (Admission.QUEUED, Admission.QUEUED)
    job = view(store, second.job_id)
    assert (job.status, job.position, job.attempt) == (JobStatus.QUEUED, 1, 0)


def test_a_free_slot_of_a_ready_replica_admits_exactly_one(store: RedisJobStore) -> None:
    beat(store)
    admissions = [store.run(submit()).admission for _ in range(2)]
    assert admissions == [Admission.RUN_NOW, Admission.QUEUED]


def test_a_loading_replica_admits_nothing_at_once(store: RedisJobStore) -> None:
    beat(store, state=AppState.LOADING)
    assert store.run(submit()).admission is Admission.QUEUED
    assert store.app_status(APP).state is AppState.LOADING


def test_a_lost_reply_makes_no_second_job(store: RedisJobStore) -> None:
    operation = submit()
    store.run(operation)
    again = store.run(operation)
    assert (again.admission, again.job_id) == (Admission.DUPLICATE, operation.job_id)
    assert store.app_status(APP).queued == 1


def test_parallel_submissions_under_one_key_make_one_job(redis_url: str, redis: Redis) -> None:
    ids = list[str]()

    def go() -> None:
        ids.append(RedisJobStore(connect(redis_url)).run(submit(idempotency_key="k")).job_id)

    threads = [threading.Thread(target=go) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 16
    assert len(set(ids)) == 1


def test_a_key_with_another_body_conflicts(store: RedisJobStore) -> None:
    first = store.run(submit(idempotency_key="k"))
    other = store.run(submit(idempotency_key="k", digest="another"))
    assert (other.admission, other.job_id) == (Admission.CONFLICT, first.job_id)


def test_a_full_queue_refuses(store: RedisJobStore) -> None:
    store.run(submit(queue_limit=1))
    refused = store.run(submit(queue_limit=1))
    assert (refused.admission, refused.ahead) == (Admission.FULL, 1)


def test_higher_priority_runs_first_then_first_come(store: RedisJobStore) -> None:
    low, high, high2 = (store.run(submit(priority=p)).job_id for p in (0, 5, 5))
    assert [claim(store).id for _ in range(3)] == [high, high2, low]


def test_a_finished_job_shows_its_result(store: RedisJobStore) -> None:
    store.run(submit())
    job = claim(store)
    names = store.put_results(job.id, job.fence, [b"png"])
    ending = store.run(
        finish(
            job.id, job.fence, JobStatus.SUCCEEDED, result_keys=names, image_seeds=[7],
            metrics=METRICS, seconds=2.0,
        )
    )  # fmt: skip
    done = view(store, job.id)
    assert ending is Ending.FINISHED
    assert (done.status, done.result_keys, done.image_seeds) == (
        JobStatus.SUCCEEDED, tuple(names), (7,),
    )  # fmt: skip
    assert done.metrics == METRICS
    assert store.app_status(APP).seconds_per_job == 2.0
    assert store.app_status(APP).running == 0


def test_a_finish_whose_reply_was_lost_may_be_repeated(store: RedisJobStore) -> None:
    store.run(submit())
    job = claim(store)
    operation = finish(job.id, job.fence, JobStatus.SUCCEEDED, metrics=METRICS)
    assert [store.run(operation) for _ in range(2)] == [Ending.FINISHED, Ending.FINISHED]


def test_a_late_replica_cannot_change_a_result(store: RedisJobStore, redis: Redis) -> None:
    store.run(submit())
    late = claim(store, RUN_OUT)
    _until_lease_is_over(redis)
    reap(store)
    second = claim(store)
    assert (second.id, second.fence) == (late.id, 2)
    assert beat(store, late) == [Pulse.LOST]
    mine = store.put_results(second.id, second.fence, [b"second"])
    theirs = store.put_results(late.id, late.fence, [b"late"])
    done = finish(second.id, 2, JobStatus.SUCCEEDED, result_keys=mine, metrics=METRICS)
    assert store.run(done) is Ending.FINISHED
    too_late = finish(late.id, 1, JobStatus.SUCCEEDED, result_keys=theirs, metrics=METRICS)
    assert store.run(too_late) is Ending.LOST
    assert view(store, late.id).result_keys == tuple(mine)
    assert redis.exists(*theirs) == 0


def test_a_lost_replicas_job_goes_back_to_its_place(store: RedisJobStore, redis: Redis) -> None:
    first, second = store.run(submit()).job_id, store.run(submit()).job_id
    claim(store, RUN_OUT)
    _until_lease_is_over(redis)
    reap(store)
    assert [view(store, job).position for job in (first, second)] == [0, 1]


def test_a_job_that_loses_every_replica_ends_failed(store: RedisJobStore, redis: Redis) -> None:
    job_id = store.run(submit(max_attempts=2)).job_id
    for _ in range(2):
        claim(store, RUN_OUT)
        _until_lease_is_over(redis)
        reap(store)
    job = view(store, job_id)
    assert (job.status, job.attempt) == (JobStatus.FAILED, 2)
    assert job.error
    assert job.error.code == "worker_lost"


def test_a_heartbeat_keeps_the_lease_and_shows_progress(store: RedisJobStore, redis: Redis) -> None:
    store.run(submit())
    job = claim(store, timedelta(milliseconds=500))
    assert beat(store, job) == [Pulse.OK]
    reap(store)
    seen = view(store, job.id)
    assert (seen.status, seen.step, seen.phase) == (JobStatus.RUNNING, 3, "step 3 of 20")
    lease_end = redis.zscore(keys.LEASE + APP, job.id)
    assert isinstance(lease_end, float)
    now = redis.time()
    assert isinstance(now, tuple)
    assert lease_end - now[0] * 1000 > 5000


def test_a_queued_job_is_cancelled_at_once(store: RedisJobStore) -> None:
    job_id = store.run(submit()).job_id
    assert store.run(Cancel(app=APP, job_id=job_id, job_ttl=JOB_TTL)) is JobStatus.QUEUED
    assert view(store, job_id).status is JobStatus.CANCELLED
    assert store.run(Claim(app=APP, replica="r", count=1, lease=LEASE)) == []


def test_a_cancelled_running_job_shows_no_result_later(store: RedisJobStore, redis: Redis) -> None:
    store.run(submit())
    job = claim(store)
    assert store.run(Cancel(app=APP, job_id=job.id, job_ttl=JOB_TTL)) is JobStatus.RUNNING
    assert beat(store, job) == [Pulse.CANCEL]
    names = store.put_results(job.id, job.fence, [b"png"])
    operation = finish(job.id, 1, JobStatus.SUCCEEDED, result_keys=names, metrics=METRICS)
    assert store.run(operation) is Ending.CANCELLED
    done = view(store, job.id)
    assert (done.status, done.result_keys, done.metrics) == (JobStatus.CANCELLED, (), None)
    assert redis.exists(*names) == 0


def test_cancelling_an_unknown_job_finds_nothing(store: RedisJobStore) -> None:
    assert store.run(Cancel(app=APP, job_id=new_job_id(), job_ttl=JOB_TTL)) is None


def test_a_released_job_keeps_its_place_and_all_its_attempts(store: RedisJobStore) -> None:
    first = store.run(submit(max_attempts=1)).job_id
    store.run(submit())
    job = claim(store)
    assert store.run(Release(app=APP, job_id=job.id, fence=job.fence, job_ttl=JOB_TTL))
    assert not store.run(Release(app=APP, job_id=job.id, fence=job.fence, job_ttl=JOB_TTL))
    again = claim(store)
    assert (again.id, again.fence) == (first, 2)


def test_a_broken_app_ends_its_queue_and_refuses_until_healed(store: RedisJobStore) -> None:
    job_id = store.run(submit()).job_id
    failure = JobFailure(code="app_broken", message="no such file")
    drained = store.run(Drain(app=APP, failure=failure, job_ttl=JOB_TTL, broken=True))
    assert drained == 1
    assert view(store, job_id).error == failure
    refused = store.run(submit())
    assert (refused.admission, refused.reason) == (Admission.BROKEN, "no such file")
    assert store.app_status(APP).state is AppState.BROKEN
    store.heal(APP)
    assert store.run(submit()).admission is Admission.QUEUED


def test_only_a_replica_of_the_deployed_app_can_break_it(store: RedisJobStore) -> None:
    old, new = spec(), spec(queue_limit=7)
    failure = JobFailure(code="app_broken", message="no such file")
    store.register_app(new)
    store.run(submit())
    assert store.run(Drain(app=APP, failure=failure, job_ttl=JOB_TTL, broken=True, spec=old)) == 0
    assert store.app_status(APP).broken_reason is None
    assert store.run(Drain(app=APP, failure=failure, job_ttl=JOB_TTL, broken=True, spec=new)) == 1
    assert store.app_status(APP).broken_reason == "no such file"


def test_an_expired_job_is_gone_until_it_is_trimmed(store: RedisJobStore, redis: Redis) -> None:
    job_id = store.run(submit()).job_id
    alive = store.run(submit()).job_id
    redis.delete(keys.JOB + job_id)
    with pytest.raises(JobExpiredError):
        view(store, job_id)
    assert store.trim(older_than=timedelta(hours=1)) == 0
    assert store.trim(older_than=timedelta(seconds=-5)) == 1
    with pytest.raises(JobNotFoundError):
        view(store, job_id)
    assert view(store, alive).status is JobStatus.QUEUED


def test_the_registry_keeps_specifications(store: RedisJobStore) -> None:
    store.register_app(spec())
    assert store.apps() == {APP: spec()}
    store.unregister_app(APP)
    assert store.apps() == {}


def test_a_wish_for_a_replica_shows_and_passes(store: RedisJobStore) -> None:
    assert not store.app_status(APP).wished
    store.wish_replica(APP, 60)
    assert store.app_status(APP).wished
    store.wish_replica(APP, -1)
    assert not store.app_status(APP).wished


def test_scripts_survive_a_flush_of_the_script_cache(store: RedisJobStore, redis: Redis) -> None:
    store.run(submit())
    redis.script_flush()
    assert store.run(submit()).ahead == 1


def test_a_server_that_is_away_is_one_clear_error() -> None:
    store = RedisJobStore(connect("redis://127.0.0.1:1"))
    with pytest.raises(StoreUnavailableError, match="REDIS_URL"):
        store.run(submit())


def _until_lease_is_over(redis: Redis) -> None:
    """Wait for the server's clock to pass the lease: it decides, not ours."""
    leases: Any = redis.zrange(keys.LEASE + APP, 0, 0, withscores=True)
    ((_, end),) = leases
    while True:
        seconds, microseconds = map(int, redis.time())
        if seconds * 1000 + microseconds // 1000 >= end:
            return


def test_a_replica_that_dies_while_it_loads_is_a_failed_start(store: RedisJobStore) -> None:
    replica("dies loading", AppState.LOADING, store, RUN_OUT)
    replica("dies serving", AppState.READY, store, RUN_OUT)
    time.sleep(0.02)
    replica("next", AppState.LOADING, store)
    assert store.load_failures(APP) == 1
    store.leave(APP, "next")  # told to stop: no failure
    replica("another", AppState.READY, store)
    assert store.load_failures(APP) == 1
    store.note_load(APP, 1.0)
    assert store.load_failures(APP) == 0
