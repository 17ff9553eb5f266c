"""What a waiting client is told: the phase, the ETA, when to look again."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from api.estimate import (
    eta_seconds,
    full_queue_retry_after,
    full_server_retry_after,
    phase,
    retry_after,
)
from api.forecast import BYTES_PER_SECOND, PLACEMENT_SECONDS, REST_SECONDS
from sdserve.apps import (
    AppState,
    AppStatus,
    Backlog,
    LoadPace,
    LoadProgress,
    ReplicaPresence,
    RunningWork,
)
from sdserve.jobs import Job, JobStatus, new_job_id
from sdserve.pace import Measured, Pace, Work
from tests.values import APP, params

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WORK = Work.of(params(num_inference_steps=20))
LONG = Work.of(params(num_inference_steps=80))
# A job takes 2 s: 20 steps of 0.1 s. Pictures and files cost nothing.
PACE = Pace().seen(Measured(work=WORK, denoise_seconds=2.0, picture_seconds=0.0, file_seconds=0.0))
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


def running(job_id: str = "other", **changes: Any) -> RunningWork:
    fields: dict[str, Any] = {
        "job_id": job_id, "owner": "r", "work": WORK, "step": 0, "seconds": 0.0, "age": 0.0,
    }  # fmt: skip
    return RunningWork(**{**fields, **changes})


def backlog(*queued: Work | None, runs: tuple[RunningWork, ...] = (), more: int = 0) -> Backlog:
    position = len(queued) + more
    return Backlog(before=JOB.id, position=position, queued=queued, running=runs)


def look(app: AppStatus | None) -> int:
    """Of the job's answer."""
    return retry_after(eta_seconds(JOB, app), app)


def no_place(*runs: RunningWork) -> Backlog:
    """Of a job that runs."""
    return Backlog(before=JOB.id, position=None, queued=(), running=runs)


COLD = AppStatus(
    state=AppState.COLD,
    phase=None,
    queued=3,
    running=0,
    replicas=(),
    pace=PACE,
    load=LoadPace(seconds=10.0, reading_seconds=8.0, size=8000),
    file_bytes=8000,
    backlog=backlog(WORK, WORK),
)
BUSY = replace(
    COLD,
    state=AppState.BUSY,
    phase="ready",
    running=1,
    replicas=(REPLICA,),
    backlog=backlog(WORK, WORK, runs=(running(),)),
)


def test_a_cold_start_says_what_it_waits_for() -> None:
    assert phase(JOB, COLD, NOW + timedelta(seconds=2)) == "starting a process"
    assert phase(JOB, COLD, NOW + timedelta(minutes=2)) == "waiting for a GPU"
    loading = replace(COLD, state=AppState.LOADING, phase="reading file 43%")
    assert phase(JOB, loading, NOW) == "reading file 43%"


def test_a_busy_app_says_how_many_are_ahead() -> None:
    assert phase(JOB, BUSY, NOW) == "waiting, 2 ahead"
    assert phase(replace(JOB, position=0), BUSY, NOW) == "waiting, next in line"


def test_a_running_job_tells_its_own_phase_and_a_final_one_none() -> None:
    runs = replace(JOB, status=JobStatus.RUNNING, phase="step 5 of 20", step=5)
    assert phase(runs, BUSY, NOW) == "step 5 of 20"
    assert phase(replace(runs, cancel_requested=True), BUSY, NOW) == "cancelling"
    assert phase(replace(JOB, status=JobStatus.SUCCEEDED), None, NOW) is None


def test_the_eta_is_the_work_ahead_and_the_own() -> None:
    assert eta_seconds(JOB, BUSY) == pytest.approx(8)  # 1 running, 2 ahead, itself
    runs = (running(step=10, age=0.5),)
    assert eta_seconds(JOB, replace(BUSY, backlog=backlog(LONG, runs=runs))) == pytest.approx(10.5)
    idle = replace(BUSY, backlog=backlog())
    assert eta_seconds(JOB, idle) == pytest.approx(2)
    own = replace(JOB, params=params(num_inference_steps=40, num_images=2))
    assert eta_seconds(own, idle) == pytest.approx(8)


def test_a_running_job_has_its_own_rest() -> None:
    job = replace(JOB, status=JobStatus.RUNNING, position=None)
    for step, age, left in ((0, 0.0, 2.0), (15, 0.0, 0.5), (15, 0.3, 0.2), (15, 9.0, 0.0)):
        runs = (running(job.id, step=step, age=age),)
        app = replace(BUSY, backlog=no_place(*runs))
        assert eta_seconds(job, app) == pytest.approx(left)


def test_a_files_encoding_keeps_its_own_job_only() -> None:
    pace = Pace().seen(
        Measured(work=WORK, denoise_seconds=2.0, picture_seconds=1.0, file_seconds=5.0)
    )
    app = replace(BUSY, pace=pace, backlog=backlog(WORK))
    assert eta_seconds(JOB, app) == pytest.approx(3 + 3 + 5)


def test_jobs_are_dealt_to_the_replica_that_is_free_first() -> None:
    other = replace(REPLICA, id="s")
    runs = (running(step=0, work=LONG), running("third", owner="s", step=15))
    two = replace(BUSY, replicas=(REPLICA, other), backlog=backlog(WORK, WORK, runs=runs))
    assert eta_seconds(JOB, two) == pytest.approx(0.5 + 3 * 2)  # "r" is taken for 8 s
    two = replace(two, backlog=backlog(LONG, WORK, runs=runs))
    assert eta_seconds(JOB, two) == pytest.approx(8.5 + 2)  # of "s": "r" had the second


def test_jobs_that_run_together_share_a_replica() -> None:
    wide = replace(REPLICA, slots=2)
    runs = (running(), running("third"))
    app = replace(BUSY, replicas=(wide,), backlog=backlog(runs=runs))
    assert eta_seconds(JOB, app) == pytest.approx(4 + 2)
    mine = replace(JOB, status=JobStatus.RUNNING)
    runs = (running(mine.id), running("third", step=10))
    app = replace(app, backlog=no_place(*runs))
    assert eta_seconds(mine, app) == pytest.approx(3)


def test_jobs_beyond_those_told_take_the_mean() -> None:
    app = replace(BUSY, backlog=backlog(WORK, WORK, more=100))
    assert eta_seconds(JOB, app) == pytest.approx(2 + 2 + 2 + 200)
    app = replace(BUSY, backlog=backlog(WORK, None))
    assert eta_seconds(JOB, app) == pytest.approx(6)


def test_a_lost_replicas_job_comes_first_again() -> None:
    runs = (running(owner="gone", step=19),)
    assert eta_seconds(JOB, replace(BUSY, backlog=backlog(runs=runs))) == pytest.approx(4)
    mine = replace(JOB, status=JobStatus.RUNNING)
    runs = (running(mine.id, owner="gone", step=19),)
    app = replace(BUSY, backlog=no_place(*runs))
    assert eta_seconds(mine, app) == pytest.approx(2)


def test_one_look_at_a_whole_queue_tells_every_job_in_it() -> None:
    works = (WORK, LONG, WORK)
    whole = Backlog(before="end", position=103, queued=works, running=(running(),))
    app = replace(BUSY, backlog=whole)
    for position, left in ((0, 2 + 2), (1, 2 + 2 + 2), (2, 2 + 10 + 2), (3, 2 + 12 + 2)):
        assert eta_seconds(replace(JOB, position=position), app) == pytest.approx(left)
    far = eta_seconds(replace(JOB, position=103), app)
    assert far is not None
    assert far > 2 + 12 + 2 + 100 * 2
    assert eta_seconds(JOB, replace(BUSY, backlog=None)) is None


# --- starts --------------------------------------------------------------------------------------


def loading(progress: LoadProgress, **changes: Any) -> AppStatus:
    replica = replace(REPLICA, state=AppState.LOADING, load=progress)
    fields: dict[str, Any] = {"state": AppState.LOADING, "replicas": (replica,)}
    return replace(COLD, **{**fields, **changes})


def progress(seconds: float, read: int, reading_seconds: float) -> LoadProgress:
    return LoadProgress(seconds=seconds, bytes=read, size=8000, reading_seconds=reading_seconds)


def test_a_cold_app_starts_as_it_did_the_last_time() -> None:
    assert eta_seconds(JOB, COLD) == pytest.approx(PLACEMENT_SECONDS + 10 + 6)


def test_a_start_counts_down_by_what_is_read() -> None:
    for now, left in (
        (progress(0, 0, 0), 10),
        (progress(1, 0, 0), 9),
        (progress(3, 2000, 2), 7),  # as fast as the last time
        (progress(5, 2000, 4), 4 * (0.75 * 2 + 0.25 * 4) - 4 + 1 + 0),  # twice as slow so far
        (progress(9, 8000, 8), 1),
        (progress(60, 8000, 8), 0),  # longer than ever: it may be ready any moment
    ):
        assert eta_seconds(JOB, loading(now)) == pytest.approx(left + 6), now


def test_a_start_that_was_never_measured_is_guessed_from_the_file() -> None:
    first = replace(COLD, load=None, file_bytes=int(7 * BYTES_PER_SECOND))
    guess = PLACEMENT_SECONDS + 7 + REST_SECONDS
    assert eta_seconds(JOB, first) == pytest.approx(guess + 6)
    assert look(replace(first, pace=Pace())) == 10  # 9.5 s, no ETA


def test_another_file_takes_its_own_time_at_the_speed_of_the_last() -> None:
    twice = replace(COLD, file_bytes=16_000)
    assert eta_seconds(JOB, twice) == pytest.approx(PLACEMENT_SECONDS + 2 + 16 + 6)


def test_a_replica_that_serves_is_not_waited_for_until_another_has_loaded() -> None:
    other = replace(REPLICA, id="s", state=AppState.LOADING, load=progress(0, 0, 0))
    app = replace(BUSY, replicas=(REPLICA, other), backlog=backlog(WORK))
    assert eta_seconds(JOB, app) == pytest.approx(4)


# --- what is not known ---------------------------------------------------------------------------


def test_without_measurements_there_is_no_eta_but_a_time_to_look_again() -> None:
    unknown = replace(BUSY, pace=Pace(), backlog=backlog())
    assert eta_seconds(JOB, unknown) is None
    assert look(unknown) == 1
    assert look(None) == 1


def test_the_steps_of_a_first_job_tell_its_eta() -> None:
    job = replace(JOB, status=JobStatus.RUNNING)
    runs = (running(job.id, step=5, seconds=2.5),)
    app = replace(BUSY, pace=Pace(), backlog=no_place(*runs))
    assert eta_seconds(job, app) == pytest.approx(7.5)
    app = replace(app, backlog=backlog(runs=(running(step=5, seconds=2.5),)))
    assert eta_seconds(JOB, app) == pytest.approx(7.5 + 10)


def test_a_broken_app_and_an_end_have_no_eta() -> None:
    assert eta_seconds(JOB, replace(COLD, state=AppState.BROKEN)) is None
    assert eta_seconds(replace(JOB, status=JobStatus.FAILED), BUSY) is None


# --- Retry-After ---------------------------------------------------------------------------------


def test_times_to_look_again_are_whole_and_bounded() -> None:
    assert look(BUSY) == 8
    assert look(replace(BUSY, backlog=backlog(more=1000))) == 60
    assert look(replace(BUSY, backlog=backlog())) == 2


def test_a_full_queue_has_room_when_the_next_job_is_taken_up() -> None:
    assert full_queue_retry_after(BUSY) == 2
    runs = (running(work=LONG, step=40),)
    assert full_queue_retry_after(replace(BUSY, backlog=backlog(LONG, runs=runs))) == 4
    assert full_queue_retry_after(COLD) == 11
    assert full_server_retry_after(BUSY) == 5
    huge = replace(LONG, calls=10**6)
    assert full_queue_retry_after(replace(BUSY, backlog=backlog(runs=(running(work=huge),)))) == 600
