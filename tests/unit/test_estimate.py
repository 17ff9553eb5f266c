"""What a waiting client is told: the phase, the ETA, when to look again."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from api.estimate import eta_seconds, full_queue_retry_after, phase, retry_after
from sdserve.apps import AppState, AppStatus, ReplicaPresence
from sdserve.jobs import Job, JobStatus, new_job_id
from tests.values import APP, params

NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOB = Job(
    id=new_job_id(),
    app=APP,
    model="test",
    status=JobStatus.QUEUED,
    params=params(),
    created_at=NOW,
    position=2,
)
REPLICA = ReplicaPresence(id="r", state=AppState.READY, phase="ready", pid=1, node="n")
COLD = AppStatus(
    state=AppState.COLD,
    phase=None,
    queued=3,
    running=0,
    replicas=(),
    seconds_per_job=2.0,
    load_seconds=10.0,
)
BUSY = replace(COLD, state=AppState.BUSY, phase="ready", running=1, replicas=(REPLICA,))


def test_a_cold_start_says_what_it_waits_for() -> None:
    assert phase(JOB, COLD, NOW + timedelta(seconds=2)) == "starting a process"
    assert phase(JOB, COLD, NOW + timedelta(minutes=2)) == "waiting for a GPU"
    loading = replace(COLD, state=AppState.LOADING, phase="reading file 43%")
    assert phase(JOB, loading, NOW) == "reading file 43%"


def test_a_busy_app_says_how_many_are_ahead() -> None:
    assert phase(JOB, BUSY, NOW) == "waiting, 2 ahead"
    assert phase(replace(JOB, position=0), BUSY, NOW) == "waiting, next in line"


def test_a_running_job_tells_its_own_phase_and_a_final_one_none() -> None:
    running = replace(JOB, status=JobStatus.RUNNING, phase="step 5 of 20", step=5)
    assert phase(running, BUSY, NOW) == "step 5 of 20"
    assert phase(replace(running, cancel_requested=True), BUSY, NOW) == "cancelling"
    assert phase(replace(JOB, status=JobStatus.SUCCEEDED), None, NOW) is None


def test_the_eta_counts_jobs_ahead_and_a_load() -> None:
    assert eta_seconds(JOB, BUSY) == pytest.approx(8)  # 1 running, 2 ahead, itself
    assert eta_seconds(JOB, COLD) == pytest.approx(16)  # 3 jobs and a load
    running = replace(JOB, status=JobStatus.RUNNING, step=15)
    assert eta_seconds(running, BUSY) == pytest.approx(0.5)


def test_without_measurements_there_is_no_eta_but_a_time_to_look_again() -> None:
    unknown = replace(COLD, seconds_per_job=None)
    assert eta_seconds(JOB, unknown) is None
    assert retry_after(JOB, unknown) == 1


def test_times_to_look_again_are_whole_and_bounded() -> None:
    assert retry_after(JOB, BUSY) == 8
    assert retry_after(JOB, replace(BUSY, seconds_per_job=1000.0)) == 60
    assert full_queue_retry_after(replace(BUSY, queued=100)) == 200
    assert full_queue_retry_after(replace(BUSY, queued=10**6)) == 600
