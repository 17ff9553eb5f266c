"""The promises of the job store, kept by the scripts on a real server and by the one in memory."""

import threading
from dataclasses import asdict, replace
from datetime import timedelta

import pytest

from sdserve import keys, outbox
from sdserve.apps import AppOutlook, AppState, LoadPace, LoadProgress
from sdserve.errors import JobExpiredError, JobNotFoundError
from sdserve.job_list import ListJobs
from sdserve.jobs import JobFailure, JobStatus, Preview, new_job_id
from sdserve.limits import UNRUN_LIMIT, UNRUN_TTL, Limits, Quotas, ResultBudget
from sdserve.operations import (
    END_OF_QUEUE,
    Admission,
    Claim,
    Drain,
    Ending,
    Look,
    Place,
    Pulse,
    Release,
    TakeTurn,
    ViewApp,
    ViewOutlooks,
    ViewPlaces,
    job_of,
)
from sdserve.outbox import HookOutcome, HookState, HookTry, ReplayHook, TakeHooks
from sdserve.pace import Measured, Pace, Work
from sdserve.testing import memory_outbox
from sdserve.usage import Spent, Usage
from tests.store_world import RUN_OUT, World
from tests.values import APP, JOB_TTL, LEASE, METRICS, finish, names_of, params, spec, submit
from tests.waiting import until

pytestmark = pytest.mark.integration

FAILURE = JobFailure(code="app_broken", message="no such file")
SPENT = Spent(steps=20, gpu_ms=812, cpu_ms=1234, energy_mj=350_000)
USED = Usage(**asdict(SPENT))


# --- accepting -----------------------------------------------------------------------------------


def test_a_submitted_job_is_queued_with_its_position(world: World) -> None:
    first, second = world.submit(), world.submit()
    assert (first.admission, second.admission) == (Admission.QUEUED, Admission.QUEUED)
    job = world.view(second.job_id)
    assert (job.status, job.position, job.attempt) == (JobStatus.QUEUED, 1, 0)


def test_a_free_slot_of_a_ready_replica_admits_exactly_one(world: World) -> None:
    world.beat()
    admissions = [world.submit().admission for _ in range(2)]
    assert admissions == [Admission.RUN_NOW, Admission.QUEUED]


def test_a_slot_that_a_job_holds_is_not_free(world: World) -> None:
    world.submit()
    job = world.claim()
    world.beat(job)
    assert world.submit().admission is Admission.QUEUED
    assert world.store.app_status(APP).state is AppState.BUSY


def test_a_loading_replica_admits_nothing_at_once(world: World) -> None:
    world.beat(state=AppState.LOADING)
    assert world.submit().admission is Admission.QUEUED
    assert world.store.app_status(APP).state is AppState.LOADING


def test_a_lost_reply_makes_no_second_job(world: World) -> None:
    operation = submit()
    world.run(operation)
    again = world.run(operation)
    assert (again.admission, again.job_id) == (Admission.DUPLICATE, operation.job_id)
    assert world.store.app_status(APP).queued == 1


def test_parallel_submissions_under_one_key_make_one_job(world: World) -> None:
    ids = list[str]()
    threads = [
        threading.Thread(target=lambda: ids.append(world.submit(idempotency_key="k").job_id))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 16
    assert len(set(ids)) == 1


def test_a_key_with_another_body_conflicts(world: World) -> None:
    first = world.submit(idempotency_key="k")
    other = world.submit(idempotency_key="k", digest="another")
    assert (other.admission, other.job_id) == (Admission.CONFLICT, first.job_id)


def test_a_key_is_known_while_its_job_runs_and_after_its_end(world: World) -> None:
    first = world.submit(idempotency_key="k")
    job = world.claim()
    assert world.submit(idempotency_key="k").job_id == first.job_id
    world.succeed(job)
    again = world.submit(idempotency_key="k")
    assert (again.admission, again.job_id) == (Admission.DUPLICATE, first.job_id)


def test_the_same_key_of_another_client_or_app_is_another_key(world: World) -> None:
    ids = {
        world.submit(idempotency_key="k", client=client, app=app).job_id
        for client in ("a", "b")
        for app in (APP, "sd-other")
    }
    assert len(ids) == 4


# --- bounds --------------------------------------------------------------------------------------


def test_a_full_queue_refuses(world: World) -> None:
    world.submit(queue_limit=1)
    refused = world.submit(queue_limit=1)
    assert (refused.admission, refused.ahead) == (Admission.FULL, 1)


def test_a_full_server_refuses_every_app_until_a_job_ends(world: World) -> None:
    limits = Limits(jobs=2)
    world.submit(limits=limits)
    other = world.submit(limits=limits, app="sd-other").job_id
    assert world.submit(limits=limits, app="sd-third").admission is Admission.SERVER_FULL
    assert world.store.unfinished() == ["sd-other", APP]
    job = world.claim()
    assert world.submit(limits=limits).admission is Admission.SERVER_FULL  # running jobs count
    world.succeed(job)
    assert world.submit(limits=limits).admission is Admission.QUEUED
    assert world.view(other).status is JobStatus.QUEUED


def test_a_clients_bound_is_its_own(world: World) -> None:
    limits = Limits(client=Quotas(jobs=1))
    mine = world.submit(limits=limits, client="a").job_id
    refused = world.submit(limits=limits, client="a")
    assert (refused.admission, refused.ahead) == (Admission.CLIENT_FULL, 1)
    assert world.submit(limits=limits, client="b").admission is Admission.QUEUED
    world.cancel(mine)
    assert world.submit(limits=limits, client="a").admission is Admission.QUEUED


def test_a_clients_queued_jobs_have_a_bound_of_their_own(world: World) -> None:
    limits = Limits(client=Quotas(queued=1))
    first = world.submit(limits=limits, client="a").job_id
    refused = world.submit(limits=limits, client="a")
    assert (refused.admission, refused.ahead) == (Admission.CLIENT_QUEUE_FULL, 1)
    job = world.claim()  # what runs is not queued
    assert job.id == first
    assert world.can_submit(limits=limits, client="a")
    assert world.can_submit(limits=limits, client="b")
    # Handed back it is queued again; cancelled, or failed with its app, no more.
    world.run(Release(app=APP, job_id=job.id, fence=job.fence, job_ttl=JOB_TTL))
    assert not world.can_submit(limits=Limits(client=Quotas(queued=2)), client="a")
    world.cancel(first)
    assert world.can_submit(limits=Limits(client=Quotas(queued=2)), client="a")
    world.run(Drain(app=APP, failure=FAILURE, job_ttl=JOB_TTL, broken=False))
    assert world.can_submit(limits=limits, client="a")


def test_a_lost_lease_makes_its_job_a_queued_one(world: World) -> None:
    limits = Limits(client=Quotas(queued=1))
    world.submit(limits=limits, client="a")
    world.claim(RUN_OUT)
    world.reap()
    assert not world.can_submit(limits=limits, client="a")


def test_images_of_a_day_are_those_drawn_and_those_asked_for(world: World) -> None:
    limits = Limits(client=Quotas(images_per_day=4))
    two = params(num_images=2)
    assert world.can_submit(limits=limits, client="a", params=two)
    drawn = world.succeed(world.claim(), [b"1", b"2"])
    assert drawn is Ending.FINISHED
    waiting = world.submit(limits=limits, client="a").job_id
    refused = world.submit(limits=limits, client="a", params=two)
    assert (refused.admission, refused.ahead) == (Admission.IMAGES_SPENT, 3)
    assert refused.standing is not None
    assert timedelta(0) < refused.standing.day_left <= timedelta(days=1)
    assert world.can_submit(limits=limits, client="b", params=two)
    # One more fits, and what was never drawn costs nothing.
    assert world.can_submit(limits=limits, client="a")
    assert not world.can_submit(limits=limits, client="a")
    world.cancel(waiting)
    assert world.can_submit(limits=limits, client="a")


def test_gpu_seconds_of_a_day_are_spent_when_they_are_reached(world: World) -> None:
    limits = Limits(client=Quotas(gpu_seconds_per_day=2))
    for _ in range(2):
        assert world.can_submit(limits=limits, client="a")
        world.succeed(world.claim(), spent=Spent(gpu_ms=1500))
    refused = world.submit(limits=limits, client="a")
    assert (refused.admission, refused.ahead) == (Admission.GPU_SPENT, 3000)
    assert world.can_submit(limits=limits, client="b")
    assert world.can_submit(limits=Limits(client=Quotas(gpu_seconds_per_day=4)), client="a")


def test_a_nameless_client_has_no_quotas(world: World) -> None:
    none = Quotas(jobs=0, queued=0, images_per_day=0, gpu_seconds_per_day=0)
    accepted = world.submit(limits=Limits(client=none))
    assert (accepted.admission, accepted.standing) == (Admission.QUEUED, None)


def test_an_accepted_job_tells_how_its_client_stands(world: World) -> None:
    world.submit(client="a", params=params(num_images=2))
    world.succeed(world.claim(), [b"1", b"2"], spent=Spent(gpu_ms=1500))
    world.submit(client="a", params=params(num_images=3))
    world.claim()
    standing = world.submit(client="a").standing
    assert standing is not None
    seen = (standing.jobs, standing.queued, standing.images, standing.gpu_ms)
    assert seen == (2, 1, 6, 1500)


def test_a_repeat_is_no_second_submission_for_quotas(world: World) -> None:
    limits = Limits(client=Quotas(jobs=1, images_per_day=1))
    first = world.submit(limits=limits, client="a", idempotency_key="k")
    again = world.submit(limits=limits, client="a", idempotency_key="k")
    assert (again.admission, again.job_id) == (Admission.DUPLICATE, first.job_id)


def test_a_refused_job_leaves_no_trace(world: World) -> None:
    world.submit(queue_limit=1)
    refused = world.submit(queue_limit=1, idempotency_key="k", client="a")
    with pytest.raises(JobNotFoundError):
        world.view(refused.job_id)
    accepted = world.submit(idempotency_key="k", client="a", limits=Limits(client=Quotas(jobs=1)))
    assert accepted.admission is Admission.QUEUED


def test_old_results_give_way_to_new_ones(world: World) -> None:
    budget = ResultBudget(bytes=25, keep=timedelta(0))
    names = list[str]()
    for _ in range(4):
        world.submit()
        job = world.claim()
        world.succeed(job, [b"0123456789"], results=budget)
        names += world.view(job.id).result_keys
    kept = [image is not None for image in world.images(names)]
    assert kept == [False, False, True, True]


def test_young_results_are_kept_and_new_jobs_refused_instead(world: World) -> None:
    budget = ResultBudget(bytes=15, keep=timedelta(minutes=5))
    limits = Limits(results=budget)
    for _ in range(2):
        world.submit(limits=limits)
    for _ in range(2):  # what was accepted is kept, though it is more than the budget
        world.succeed(world.claim(), [b"0123456789"], results=budget)
    refused = world.submit(limits=limits)
    assert refused.admission is Admission.STORAGE_FULL
    assert refused.room_after is not None
    assert timedelta(minutes=4) < refused.room_after <= timedelta(minutes=5)
    older = Limits(results=ResultBudget(bytes=15, keep=timedelta(0)))
    assert world.submit(limits=older).admission is Admission.QUEUED


# --- order ---------------------------------------------------------------------------------------


def test_higher_priority_runs_first_then_first_come(world: World) -> None:
    low, high, high2 = (world.submit(priority=p).job_id for p in (0, 5, 5))
    assert [world.claim().id for _ in range(3)] == [high, high2, low]


def test_a_long_queue_of_one_client_does_not_delay_anothers_first_job(world: World) -> None:
    many = [world.submit(client="a", queue_limit=2000).job_id for _ in range(1000)]
    first = world.claim().id
    other = world.submit(client="b", queue_limit=2000)
    assert other.ahead == 0
    assert [first, world.claim().id] == [many[0], other.job_id]


def test_no_priority_of_one_client_delays_anothers_first_job(world: World) -> None:
    limits = {"client": "a", "queue_limit": 2000}
    for number in range(300):
        world.submit(priority=number % 21 - 10, **limits)
    for _ in range(3):
        world.claim()
    other = world.submit(client="b", priority=-10, queue_limit=2000).job_id
    # Beside what runs, one that was next already may go before.
    assert other in (world.claim().id, world.claim().id)


def test_clients_take_turns_whatever_priorities_they_use(world: World) -> None:
    urgent = {world.submit(client="a", priority=n % 21 - 10).job_id for n in range(42)}
    plain = [world.submit(client="b").job_id for _ in range(20)]
    first = [world.claim().id for _ in range(20)]
    assert 9 <= len(urgent.intersection(first)) <= 11
    assert [job_id for job_id in first if job_id in plain] == plain[: 20 - len(urgent & {*first})]


def test_what_becomes_urgent_goes_first_among_its_clients_jobs(world: World) -> None:
    plain = [world.submit(client="a").job_id for _ in range(5)]
    ran = world.claim().id
    later = [world.submit(client="a", priority=1).job_id for _ in range(3)]
    last = world.submit(client="a").job_id
    order = [world.claim().id for _ in range(8)]
    assert [ran, *order] == [plain[0], *later, *plain[1:], last]


def test_urgent_work_is_paid_by_what_its_client_has_waiting(world: World) -> None:
    mine = [world.submit(client="a").job_id for _ in range(10)]
    for _ in range(10):
        world.submit(client="b")
    mine += [world.submit(client="a", priority=5).job_id for _ in range(5)]
    first = [world.claim().id for _ in range(10)]
    assert 4 <= len(set(mine) & {*first}) <= 6


def test_a_job_that_is_handed_back_keeps_its_place_before_urgent_ones(world: World) -> None:
    world.submit()
    world.submit()
    job = world.claim()
    world.submit(priority=5)
    world.release(job)
    assert world.claim().id == job.id


def test_clients_take_turns_by_the_steps_they_ask_for(world: World) -> None:
    names = dict[str, str]()
    for client, steps in [("a", 40)] * 4 + [("b", 20)] * 8:
        wanted = params(num_inference_steps=steps)
        names[world.submit(client=client, params=wanted).job_id] = client
    order = "".join(names[world.claim().id] for _ in range(6))
    assert order.count("b") == 4  # half of the steps, twice the jobs


def test_who_was_idle_has_saved_nothing_up(world: World) -> None:
    for _ in range(6):
        world.submit(client="a")
    for _ in range(4):
        world.claim()
    late = [world.submit(client="b").job_id for _ in range(4)]
    owners = ["b" if world.claim().id in late else "a" for _ in range(4)]
    assert sorted(owners) == ["a", "a", "b", "b"]


def test_debts_end_with_the_queue(world: World) -> None:
    for _ in range(3):
        world.submit(client="a")
    for _ in range(3):
        world.claim()
    mine = world.submit(client="a").job_id
    world.submit(client="b")
    assert world.claim().id == mine  # first come: both start now


def test_a_cancelled_job_costs_its_client_nothing(world: World) -> None:
    gone = [world.submit(client="a").job_id for _ in range(5)]
    rival = [world.submit(client="b").job_id for _ in range(3)]
    for job_id in gone:
        world.cancel(job_id)
    kept = world.submit(client="a").job_id
    first_two = {world.claim().id, world.claim().id}
    assert first_two == {rival[0], kept}


def test_a_cancelled_urgent_job_costs_its_clients_others_nothing(world: World) -> None:
    world.submit(client="a")
    for job_id in [world.submit(client="a", priority=1).job_id for _ in range(5)]:
        world.cancel(job_id)
    world.submit(client="a")
    rival = [world.submit(client="b").job_id for _ in range(4)]
    assert len({world.claim().id for _ in range(4)}.intersection(rival)) == 2


# --- results -------------------------------------------------------------------------------------


def test_a_finished_job_shows_its_result(world: World) -> None:
    world.submit()
    job = world.claim()
    assert world.succeed(job) is Ending.FINISHED
    done = world.view(job.id)
    assert (done.status, done.image_seeds, done.metrics) == (JobStatus.SUCCEEDED, (0,), METRICS)
    assert done.step == done.params.total_steps
    assert world.images(done.result_keys) == [b"png"]
    assert world.store.app_status(APP).running == 0


def test_a_finish_whose_reply_was_lost_may_be_repeated(world: World) -> None:
    world.submit()
    job = world.claim()
    assert [world.succeed(job) for _ in range(2)] == [Ending.FINISHED, Ending.FINISHED]
    assert world.store.unfinished() == []


def test_a_late_replica_cannot_change_a_result(world: World) -> None:
    world.submit()
    late = world.claim(RUN_OUT)
    world.reap()
    second = world.claim()
    assert (second.id, second.fence) == (late.id, 2)
    assert world.beat(late) == [Pulse.LOST]
    assert world.succeed(late, [b"late"]) is Ending.LOST
    assert world.view(late.id).status is JobStatus.RUNNING
    assert world.succeed(second, [b"second"]) is Ending.FINISHED
    assert world.succeed(late, [b"late"]) is Ending.LOST
    done = world.view(late.id)
    assert world.images(done.result_keys) == [b"second"]
    assert world.images(names_of(late, [b"late"])) == [None]


def test_a_late_result_does_not_end_a_job_that_waits_again(world: World) -> None:
    world.submit()
    late = world.claim(RUN_OUT)
    world.reap()
    assert world.succeed(late) is Ending.LOST
    assert world.beat(late) == [Pulse.LOST]
    job = world.view(late.id)
    assert (job.status, job.step) == (JobStatus.QUEUED, 0)


def test_a_late_replica_cannot_give_back_what_another_runs(world: World) -> None:
    world.submit()
    late = world.claim(RUN_OUT)
    world.reap()
    second = world.claim()
    back = Release(app=APP, job_id=late.id, fence=late.fence, job_ttl=JOB_TTL)
    assert world.run(back) is False
    assert world.view(late.id).status is JobStatus.RUNNING
    assert world.beat(second) == [Pulse.OK]


# --- usage ---------------------------------------------------------------------------------------


def test_what_jobs_used_is_counted_by_client_and_app_and_kept_with_each(world: World) -> None:
    asked = [(APP, "ann"), (APP, "bob"), (APP, ""), ("sd-other", "ann")]
    for app, client in asked:
        world.submit(app=app, client=client)
    jobs = [world.claim(app=app) for app, _ in asked]
    for (app, _), job in zip(asked, jobs, strict=True):
        world.succeed(job, [b"png", b"p"], app=app, spent=SPENT)
    one = USED + Usage(jobs_succeeded=1, images=2, result_bytes=4)
    assert [world.view(job.id).usage for job in jobs] == [one] * 4
    assert counted(world, jobs[0].id) == {
        ("", ""): one, ("", APP): one, ("bob", ""): one, ("bob", APP): one,
        ("ann", ""): one + one, ("ann", APP): one, ("ann", "sd-other"): one,
    }  # fmt: skip


def test_a_job_without_a_result_is_billed_for_what_it_used(world: World) -> None:
    failed, cancelled = world.submit().job_id, world.submit().job_id
    for job in (world.claim(), world.claim()):
        status = JobStatus.FAILED if job.id == failed else JobStatus.CANCELLED
        world.run(finish(job.id, 1, status, spent=SPENT))
    assert world.view(failed).usage == USED + Usage(jobs_failed=1)
    assert world.view(cancelled).usage == USED + Usage(jobs_cancelled=1)
    both = USED + USED + Usage(jobs_failed=1, jobs_cancelled=1)
    assert counted(world, failed) == {("", ""): both, ("", APP): both}


def test_a_picture_that_came_after_the_cancel_is_not_billed_as_one(world: World) -> None:
    world.submit()
    job = world.claim()
    assert world.view(job.id).usage is None
    world.cancel(job.id)
    assert world.succeed(job, spent=SPENT) is Ending.CANCELLED
    assert world.view(job.id).usage == USED + Usage(jobs_cancelled=1)


def test_a_finish_that_is_repeated_is_billed_once(world: World) -> None:
    world.submit()
    job = world.claim()
    for _ in range(2):
        world.succeed(job, spent=SPENT)
    used = USED + Usage(jobs_succeeded=1, images=1, result_bytes=3)
    assert counted(world, job.id) == {("", ""): used, ("", APP): used}


def test_a_late_replica_bills_nothing(world: World) -> None:
    world.submit()
    late = world.claim(RUN_OUT)
    world.reap()
    job = world.claim()
    assert world.succeed(late, spent=replace(SPENT, gpu_ms=10**6)) is Ending.LOST
    world.succeed(job, spent=SPENT)
    assert world.succeed(late, spent=replace(SPENT, gpu_ms=10**6)) is Ending.LOST
    used = USED + Usage(jobs_succeeded=1, images=1, result_bytes=3)
    assert counted(world, job.id) == {("", ""): used, ("", APP): used}
    assert world.view(job.id).usage == used


def test_a_job_that_no_replica_ends_is_counted_without_amounts(world: World) -> None:
    lost = world.submit().job_id
    world.claim(RUN_OUT)
    world.cancel(lost)
    queued = world.submit().job_id
    for _ in range(2):
        world.reap()
        world.cancel(queued)
    drained = world.submit().job_id
    world.run(Drain(app=APP, failure=FAILURE, job_ttl=JOB_TTL, broken=False))
    total = Usage(jobs_cancelled=2, jobs_failed=1)
    assert counted(world, drained) == {("", ""): total, ("", APP): total}
    assert world.view(queued).usage == world.view(lost).usage == Usage(jobs_cancelled=1)


def counted(world: World, job_id: str) -> dict[tuple[str, str], Usage]:
    return {(row.client, row.app): row.usage for row in world.used(job_id)}


# --- lost replicas -------------------------------------------------------------------------------


def test_a_lost_replicas_job_goes_back_to_its_place(world: World) -> None:
    first, second = world.submit().job_id, world.submit().job_id
    world.claim(RUN_OUT)
    world.reap()
    assert [world.view(job).position for job in (first, second)] == [0, 1]


def test_a_lease_that_runs_is_left_alone(world: World) -> None:
    job_id = world.submit().job_id
    world.claim()
    assert (world.reap().requeued, world.reap().ended) == (0, 0)
    assert world.view(job_id).status is JobStatus.RUNNING


def test_a_job_that_loses_every_replica_ends_failed(world: World) -> None:
    job_id = world.submit(max_attempts=2).job_id
    for _ in range(2):
        world.claim(RUN_OUT)
        world.reap()
    job = world.view(job_id)
    assert (job.status, job.attempt) == (JobStatus.FAILED, 2)
    assert job.error
    assert job.error.code == "worker_lost"
    assert world.store.unfinished() == []


def test_a_heartbeat_keeps_the_lease_and_shows_progress(world: World) -> None:
    world.submit()
    job = world.claim(RUN_OUT)
    assert world.beat(job) == [Pulse.OK]
    assert world.reap().requeued == 0
    seen = world.view(job.id)
    assert (seen.status, seen.step, seen.phase) == (JobStatus.RUNNING, 3, "step 3 of 20")


def test_a_heartbeat_does_not_bring_a_lease_back(world: World) -> None:
    world.submit()
    job = world.claim()
    world.succeed(job)
    assert world.beat(job) == [Pulse.LOST]
    assert world.store.app_status(APP).running == 0


def test_a_released_job_keeps_its_place_and_all_its_attempts(world: World) -> None:
    first = world.submit(max_attempts=2).job_id
    world.submit()
    job = world.claim()
    back = Release(app=APP, job_id=job.id, fence=job.fence, job_ttl=JOB_TTL)
    assert world.run(back)
    assert not world.run(back)
    for fence in (2, 3):  # two losses, as if nobody had given it back
        again = world.claim(RUN_OUT)
        assert (again.id, again.fence) == (first, fence)
        world.reap()
    assert world.view(first).status is JobStatus.FAILED


def test_a_replica_that_dies_while_it_loads_is_a_failed_start(world: World) -> None:
    world.beat(replica="dies loading", state=AppState.LOADING, lease=RUN_OUT)
    world.beat(replica="dies serving", state=AppState.READY, lease=RUN_OUT)
    world.beat(replica="next", state=AppState.LOADING)
    assert world.store.load_failures(APP) == 1
    world.store.leave(APP, "next")  # told to stop: no failure
    world.beat(replica="another")
    assert world.store.load_failures(APP) == 1
    world.store.note_load(APP, LoadPace(seconds=2.0, reading_seconds=1.0, size=9))
    assert world.store.load_failures(APP) == 0


# --- what an ETA is made of ----------------------------------------------------------------------


def took(seconds: float) -> Measured:
    work = Work.of(params())
    return Measured(
        work=work, denoise_seconds=seconds, picture_seconds=seconds / 4, file_seconds=seconds / 8
    )


def test_an_app_learns_its_pace_from_every_finished_job(world: World) -> None:
    pace = Pace()
    for seconds in (2.0, 3.0, 0.7):
        world.submit()
        world.succeed(world.claim(), measured=took(seconds))
        pace = pace.seen(took(seconds))
    assert world.store.app_status(APP).pace == pace
    assert world.store.app_status("sd-other").pace == Pace()


def test_a_pace_is_learnt_once_and_from_pictures_alone(world: World) -> None:
    world.submit()
    job = world.claim()
    for _ in range(2):  # as if the first reply had been lost
        world.succeed(job, measured=took(2.0))
    world.submit()
    late = world.claim(RUN_OUT)
    world.reap()
    world.succeed(late, measured=took(99.0))
    cancelled = world.claim()
    world.cancel(cancelled.id)
    world.succeed(cancelled, measured=took(99.0))
    assert world.store.app_status(APP).pace == Pace().seen(took(2.0))


def test_a_job_is_told_the_work_before_it(world: World) -> None:
    works = [params(num_inference_steps=steps) for steps in (10, 20, 30, 40)]
    jobs = [world.submit(params=work).job_id for work in works]
    urgent = world.submit(params=params(num_images=4), priority=1).job_id
    runs = world.claim()
    world.beat(runs)
    view = ViewApp(app=APP, before=jobs[2])
    backlog = world.run(view).backlog
    assert runs.id == urgent
    assert backlog.position == 2
    assert backlog.queued == (Work.of(works[0]), Work.of(works[1]))
    (running,) = backlog.running
    assert (running.job_id, running.owner, running.step) == (urgent, "r1", 3)
    assert running.work == Work.of(params(num_images=4))
    assert 0 <= running.age < 60
    assert 0 <= running.seconds < 60


def test_outlooks_tell_of_many_apps_what_a_view_tells_of_each(world: World) -> None:
    def told() -> AppOutlook:
        gone, outlook, other = world.run(ViewOutlooks(apps=("sd-gone", APP, "sd-other")))
        assert gone == other == AppOutlook(state=AppState.COLD)
        status = world.store.app_status(APP)
        assert (outlook.state, outlook.phase) == (status.state, status.phase)
        assert outlook.broken_reason == status.broken_reason
        return outlook

    assert world.run(ViewOutlooks(apps=())) == []
    world.submit()
    assert told().state is AppState.COLD  # with a job too
    world.beat(replica="r2", phase="second")
    world.beat(replica="r1", phase="first", state=AppState.LOADING)
    assert (told().state, told().phase) == (AppState.BUSY, "first")
    world.succeed(world.claim())
    assert told().state is AppState.READY
    world.run(Drain(app=APP, failure=FAILURE, job_ttl=JOB_TTL, broken=True))
    assert (told().state, told().broken_reason) == (AppState.BROKEN, "no such file")
    world.store.heal(APP)
    for replica in ("r1", "r2"):
        world.beat(replica=replica, lease=RUN_OUT)
    assert told().state is AppState.COLD


def test_a_look_shows_a_job_and_its_app_until_the_job_has_ended(world: World) -> None:
    first, second, third = [world.submit().job_id for _ in range(3)]
    for job_id, limit in ((first, 100), (third, 100), (third, 1)):
        seen = world.run(Look(job_id=job_id, limit=limit))
        view = ViewApp(app=APP, before=job_id, limit=limit)
        assert (seen.job, seen.app) == (world.view(job_id), world.run(view))
        assert seen.results is None
    job = world.claim()
    assert world.run(Look(job_id=job.id)).app.running == 1
    world.succeed(job)
    world.cancel(second)
    for job_id in (first, second):
        seen = world.run(Look(job_id=job_id))
        assert (seen.job, seen.app) == (world.view(job_id), None)


def test_a_look_tells_a_job_that_was_from_one_that_never_was(world: World) -> None:
    job_id = world.submit().job_id
    world.cancel(job_id, ttl=timedelta(0))
    with pytest.raises(JobExpiredError):
        world.run(Look(job_id=job_id))
    with pytest.raises(JobNotFoundError):
        world.run(Look(job_id=new_job_id()))


def test_of_many_jobs_only_the_first_are_told(world: World) -> None:
    jobs = [world.submit(params=params(num_inference_steps=n)).job_id for n in range(1, 8)]
    claimed = [world.claim() for _ in range(3)]
    backlog = world.run(ViewApp(app=APP, before=jobs[6], limit=2)).backlog
    assert backlog.position == 3
    assert [work.steps for work in backlog.queued] == [4, 5]
    assert len(backlog.running) == 2
    first = world.run(ViewApp(app=APP, before=jobs[3])).backlog
    assert (first.position, first.queued, len(first.running)) == (0, (), len(claimed))


def test_who_does_not_wait_has_no_place(world: World) -> None:
    world.submit()
    job = world.claim()
    world.submit()
    for before in (job.id, new_job_id()):
        backlog = world.run(ViewApp(app=APP, before=before)).backlog
        assert (backlog.position, backlog.queued) == (None, ())
        assert [run.job_id for run in backlog.running] == [job.id]
    assert world.run(ViewApp(app=APP)).backlog is None


def test_the_end_of_a_queue_has_all_of_it_before(world: World) -> None:
    world.submit()
    world.submit()
    backlog = world.run(ViewApp(app=APP, before=END_OF_QUEUE)).backlog
    assert (backlog.position, len(backlog.queued)) == (2, 2)


def test_a_start_tells_how_far_it_is_and_what_the_last_one_took(world: World) -> None:
    assert world.store.app_status(APP).load is None
    pace = LoadPace(seconds=7.5, reading_seconds=4.25, size=6_938_078_334)
    world.store.note_load(APP, pace)
    world.store.register_app(spec())
    progress = LoadProgress(seconds=3.0, bytes=500, size=1000, reading_seconds=2.0)
    world.beat(state=AppState.LOADING, load=progress)
    status = world.store.app_status(APP)
    assert (status.load, status.file_bytes) == (pace, 1000)
    (told,) = status.replicas
    assert told.load
    assert (told.load.bytes, told.load.size, told.slots) == (500, 1000, 1)
    assert 3.0 <= told.load.seconds < 60
    assert told.load.seconds - told.load.reading_seconds == pytest.approx(1.0)


def test_a_claim_for_one_size_stops_at_a_job_of_another(world: World) -> None:
    sizes = ((128, 128), (128, 128), (128, 192), (128, 128))
    ids = [world.submit(params=params(width=w, height=h)).job_id for w, h in sizes]

    def claim(size: tuple[int, int] | None) -> list[str]:
        claim = Claim(app=APP, replica="r", count=3, lease=LEASE, size=size)
        return [job.id for job in world.run(claim)]

    assert claim((192, 128)) == []
    assert claim((128, 128)) == ids[:2]
    assert claim((128, 128)) == []
    assert world.view(ids[2]).position == 0
    assert claim(None) == ids[2:]
    assert claim((128, 128)) == []


# --- cancelling ----------------------------------------------------------------------------------


def test_a_queued_job_is_cancelled_at_once(world: World) -> None:
    job_id = world.submit().job_id
    assert world.cancel(job_id) is JobStatus.QUEUED
    assert world.view(job_id).status is JobStatus.CANCELLED
    assert world.store.app_status(APP).queued == 0
    assert world.run(Claim(app=APP, replica="r", count=1, lease=LEASE)) == []


def test_a_cancelled_running_job_shows_no_result_later(world: World) -> None:
    world.submit()
    job = world.claim()
    assert world.cancel(job.id) is JobStatus.RUNNING
    assert world.beat(job) == [Pulse.CANCEL]
    assert [world.succeed(job), world.succeed(job)] == [Ending.CANCELLED] * 2
    done = world.view(job.id)
    assert (done.status, done.result_keys, done.metrics) == (JobStatus.CANCELLED, (), None)
    assert world.images(names_of(job, [b"png"])) == [None]


def test_a_success_whose_images_are_not_there_changes_nothing(world: World) -> None:
    world.submit()
    job = world.claim()
    names = names_of(job, [b"png"])
    early = finish(job.id, job.fence, JobStatus.SUCCEEDED, result_keys=names, metrics=METRICS)
    assert world.run(early) is Ending.UNSTORED
    assert world.view(job.id).status is JobStatus.RUNNING
    assert world.beat(job) == [Pulse.OK]
    assert world.succeed(job) is Ending.FINISHED
    assert world.images(names) == [b"png"]


def test_a_cancelled_job_whose_replica_is_lost_is_not_run_again(world: World) -> None:
    job_id = world.submit(max_attempts=1).job_id
    world.claim(RUN_OUT)
    world.cancel(job_id)
    assert world.reap().ended == 1
    assert world.view(job_id).status is JobStatus.CANCELLED


def test_an_end_is_not_cancelled(world: World) -> None:
    world.submit()
    job = world.claim()
    world.succeed(job)
    before = world.view(job.id)
    assert world.cancel(job.id) is JobStatus.SUCCEEDED
    assert world.view(job.id) == before


def test_cancelling_an_unknown_job_finds_nothing(world: World) -> None:
    assert world.cancel(new_job_id()) is None


# --- apps ----------------------------------------------------------------------------------------


def test_a_broken_app_ends_its_queue_and_refuses_until_healed(world: World) -> None:
    ids = [world.submit().job_id for _ in range(3)]
    drain = Drain(app=APP, failure=FAILURE, job_ttl=JOB_TTL, broken=True, limit=2)
    assert world.store.drain(drain) == 3
    assert [world.view(job_id).error for job_id in ids] == [FAILURE] * 3
    refused = world.submit()
    assert (refused.admission, refused.reason) == (Admission.BROKEN, "no such file")
    assert world.store.app_status(APP).state is AppState.BROKEN
    world.store.heal(APP)
    assert world.submit().admission is Admission.QUEUED


def test_a_job_that_comes_back_to_a_broken_app_ends_with_it(world: World) -> None:
    lost, given_back = world.submit().job_id, world.submit().job_id
    world.claim(RUN_OUT)
    job = world.claim()
    world.run(Drain(app=APP, failure=FAILURE, job_ttl=JOB_TTL, broken=True))
    assert world.reap().ended == 1
    world.run(Release(app=APP, job_id=job.id, fence=job.fence, job_ttl=JOB_TTL))
    assert [world.view(job_id).error for job_id in (lost, given_back)] == [FAILURE] * 2


def test_a_job_that_runs_when_its_app_breaks_may_still_succeed(world: World) -> None:
    world.submit()
    job = world.claim()
    world.run(Drain(app=APP, failure=FAILURE, job_ttl=JOB_TTL, broken=True))
    assert world.succeed(job) is Ending.FINISHED


def test_only_a_replica_of_the_deployed_app_can_break_it(world: World) -> None:
    old, new = spec(), spec(queue_limit=7)
    world.store.register_app(new)
    world.submit()
    drain = Drain(app=APP, failure=FAILURE, job_ttl=JOB_TTL, broken=True, spec=old)
    assert world.run(drain) == 0
    assert world.store.app_status(APP).broken_reason is None
    drain = Drain(app=APP, failure=FAILURE, job_ttl=JOB_TTL, broken=True, spec=new)
    assert world.run(drain) == 1
    assert world.store.app_status(APP).broken_reason == "no such file"


def test_an_expired_job_is_gone_until_it_is_trimmed(world: World) -> None:
    job_id, alive = world.submit().job_id, world.submit().job_id
    world.cancel(job_id, ttl=timedelta(0))
    with pytest.raises(JobExpiredError):
        world.view(job_id)
    assert world.store.trim(older_than=timedelta(hours=1)) == 0
    assert world.store.trim(older_than=timedelta(seconds=-5)) == 1
    with pytest.raises(JobNotFoundError):
        world.view(job_id)
    assert world.view(alive).status is JobStatus.QUEUED


def test_the_registry_keeps_specifications(world: World) -> None:
    world.store.register_app(spec())
    assert world.store.apps() == {APP: spec()}
    world.store.unregister_app(APP)
    assert world.store.apps() == {}


def test_the_turn_of_a_chore_is_had_once_until_it_comes_again(world: World) -> None:
    first, second = (world.run(TakeTurn(chore="a", interval=JOB_TTL)) for _ in range(2))
    assert first.is_mine
    assert not second.is_mine
    assert timedelta(0) < second.left <= first.left <= JOB_TTL
    soon = TakeTurn(chore="b", interval=timedelta(milliseconds=10))
    assert world.run(soon).is_mine
    until(lambda: world.run(soon).is_mine)


def test_a_wish_for_a_replica_shows_and_passes(world: World) -> None:
    assert not world.store.app_status(APP).wished
    world.store.wish_replica(APP, 60)
    assert world.store.app_status(APP).wished
    world.store.wish_replica(APP, -1)
    assert not world.store.app_status(APP).wished


# --- webhooks ------------------------------------------------------------------------------------

URL = "https://receiver.example/hook"
OTHER_URL = "https://other.example/hook"
HOUR = timedelta(hours=1)


def ended_job(world: World, url: str = URL, client: str = "") -> str:
    """The event of a job that has just ended."""
    job_id = world.submit(webhook=url, client=client).job_id
    world.cancel(job_id)
    return f"job_{job_id}_cancelled"


def begun(world: World, url: str = URL, client: str = "") -> HookTry:
    attempt = world.begin(ended_job(world, url, client))
    assert attempt is not None
    return attempt


def test_however_a_job_ends_its_webhook_is_told_once(world: World) -> None:
    expected = set[str]()

    def running() -> str:
        return world.submit(webhook=URL).job_id

    expected.add(f"job_{running()}_succeeded")
    job = world.claim()
    world.succeed(job)
    world.succeed(job)  # its reply was lost
    expected.add(f"job_{running()}_failed")
    job = world.claim()
    world.run(finish(job.id, job.fence, JobStatus.FAILED, error=FAILURE))
    world.run(finish(job.id, 7, JobStatus.FAILED, error=FAILURE))  # a late writer
    expected.add(f"job_{running()}_cancelled")
    job = world.claim()
    world.cancel(job.id)
    world.succeed(job)
    expected.add(f"job_{running()}_cancelled")
    job = world.claim()
    world.cancel(job.id)
    world.run(Release(app=APP, job_id=job.id, fence=job.fence, job_ttl=JOB_TTL))
    expected.add(f"job_{world.submit(webhook=URL, max_attempts=1).job_id}_failed")
    world.claim(lease=RUN_OUT)
    world.reap()
    expected.add(ended_job(world))
    expected.add(f"job_{running()}_failed")
    world.store.drain(Drain(app=APP, failure=FAILURE, job_ttl=JOB_TTL, broken=False))
    assert len(expected) == 7
    events = world.take()
    assert len(events) == 7
    assert set(events) == expected


def test_a_job_without_webhook_tells_nobody(world: World) -> None:
    world.cancel(world.submit().job_id)
    assert world.hooks() == []


def test_undelivered_events_have_a_bound_for_each_client(world: World) -> None:
    limits = Limits(webhooks=2)
    for client in ("ann", ""):
        events = [ended_job(world, client=client) for _ in range(2)]
        refused = world.submit(webhook=URL, client=client, limits=limits)
        assert (refused.admission, refused.ahead) == (Admission.WEBHOOKS_FULL, 2)
        # What is left is told without the job that was refused.
        standing = refused.standing
        assert (standing and standing.jobs) == (0 if client else None)
        assert world.can_submit(client=client, limits=limits)
        assert world.can_submit(webhook=URL, client=client + "bob", limits=limits)
        attempt = world.begin(events[0])
        assert attempt is not None
        world.settle(attempt, HookOutcome.DELIVERED)
        assert world.can_submit(webhook=URL, client=client, limits=limits)


def test_an_event_tells_the_job_as_it_ended(world: World) -> None:
    submitted = world.submit(webhook=URL, client="ann")
    job = world.claim()
    world.succeed(job)
    attempt = world.begin(f"job_{submitted.job_id}_succeeded")
    assert attempt is not None
    assert (attempt.url, attempt.number, attempt.since_start) == (URL, 1, 1)
    told, seen = job_of(attempt.subject), world.view(job.id)
    assert told == seen
    assert (told.metrics, told.client) == (METRICS, "ann")
    assert attempt.created_at == seen.finished_at


def test_an_event_that_nobody_delivers_is_taken_again(world: World) -> None:
    event = ended_job(world)
    assert world.take(patience=RUN_OUT) == [event]
    assert world.take() == [event]
    assert world.take() == []


def test_one_at_a_time_tries_an_event(world: World) -> None:
    event = ended_job(world)
    assert world.begin(event, busy=HOUR) is not None
    assert world.begin(event) is None
    assert world.take() == []


def test_who_was_lost_in_a_try_is_followed_by_another(world: World) -> None:
    event = ended_job(world)
    lost = world.begin(event, busy=RUN_OUT)
    assert world.take(patience=RUN_OUT) == [event]
    second = world.begin(event)
    assert lost is not None
    assert second is not None
    assert (lost.number, second.number) == (1, 2)
    # The lost one comes back.
    assert world.settle(lost, HookOutcome.DEAD, reason="late") is HookState.LATE
    assert world.hooks(dead=True) == []
    assert world.settle(lost, HookOutcome.DELIVERED) is HookState.DELIVERED
    assert world.settle(second, HookOutcome.RETRY) is HookState.LATE
    assert world.hooks() == []


def test_a_delivered_event_is_gone(world: World) -> None:
    attempt = begun(world)
    for expected in (HookState.DELIVERED, HookState.LATE):
        assert world.settle(attempt, HookOutcome.DELIVERED) is expected
    assert world.hooks() == []
    assert world.begin(attempt.event) is None


def test_an_event_waits_for_its_next_try(world: World) -> None:
    attempt = begun(world)
    state = world.settle(attempt, HookOutcome.RETRY, delay=HOUR, reason="500")
    assert state is HookState.WAITING
    assert world.take() == []
    assert world.begin(attempt.event) is None
    (waiting,) = world.hooks()
    assert (waiting.event, waiting.tries, waiting.error) == (attempt.event, 1, "500")
    assert HOUR * 0.9 < waiting.at - waiting.created_at <= HOUR * 1.1


def test_a_failed_try_may_be_repeated_at_once(world: World) -> None:
    attempt = begun(world)
    world.settle(attempt, HookOutcome.RETRY, delay=RUN_OUT)
    again = world.begin(attempt.event)
    assert again is not None
    assert (again.number, again.since_start) == (2, 2)


def test_what_is_given_up_is_listed_and_can_be_replayed(world: World) -> None:
    attempt = begun(world)
    assert world.settle(attempt, HookOutcome.DEAD, reason="410") is HookState.DEAD
    assert (world.take(), world.begin(attempt.event)) == ([], None)
    (dead,) = world.hooks(dead=True)
    assert (dead.event, dead.url, dead.error) == (attempt.event, URL, "410")
    assert world.run(ReplayHook(event=attempt.event)) is True
    assert world.hooks(dead=True) == []
    assert world.take() == [attempt.event]
    again = world.begin(attempt.event)
    assert again is not None
    assert (again.number, again.since_start, again.subject) == (2, 1, attempt.subject)
    assert world.run(ReplayHook(event="job_unknown_failed")) is False


def test_a_replay_of_what_waits_needs_no_patience(world: World) -> None:
    attempt = begun(world)
    world.settle(attempt, HookOutcome.RETRY, delay=HOUR, is_slow=True)
    assert world.run(ReplayHook(event=attempt.event)) is True
    assert world.take() == [attempt.event]
    assert world.begin(attempt.event) is not None


def test_a_receiver_that_hangs_rests_and_others_do_not(world: World) -> None:
    attempt = begun(world)
    others = [ended_job(world), ended_job(world, OTHER_URL)]
    world.settle(attempt, HookOutcome.RETRY, delay=RUN_OUT, is_slow=True)
    assert world.begin(others[0]) is None
    assert others[0] not in world.take()
    assert world.begin(others[1]) is not None


def test_a_receiver_that_answers_rests_no_more(world: World) -> None:
    slow, quick = begun(world), begun(world)
    world.settle(slow, HookOutcome.RETRY, delay=RUN_OUT, is_slow=True)
    world.settle(quick, HookOutcome.DELIVERED)
    assert world.begin(ended_job(world)) is not None


def test_clients_take_turns_however_many_events_one_has(world: World) -> None:
    many = [ended_job(world, client="bob") for _ in range(5)]
    few = [ended_job(world, client="ann") for _ in range(2)]

    def take(limit: int) -> list[str]:
        return world.run(TakeHooks(limit=limit, patience=HOUR))

    first, second = take(1)[0], take(1)[0]
    assert (first in many) != (second in many)
    both = take(2)
    assert (len(set(both) & set(many)), len(set(both) & set(few))) == (1, 1)
    assert set(take(100)) == set(many) - {first, second, *both}
    assert take(100) == []


def test_who_took_long_rests_and_other_clients_do_not(world: World) -> None:
    slow = begun(world, client="ann")
    mine, his = ended_job(world, OTHER_URL, "ann"), ended_job(world, OTHER_URL, "bob")
    world.settle(slow, HookOutcome.DELIVERED, rest=HOUR)
    assert world.begin(mine) is None
    assert world.take() == [his]
    assert world.begin(his) is not None
    assert world.run(ReplayHook(event=mine)) is True
    assert world.begin(mine) is not None


def test_a_rest_ends(world: World) -> None:
    slow = begun(world, client="ann")
    world.settle(slow, HookOutcome.DELIVERED, rest=timedelta(milliseconds=1))
    event = ended_job(world, client="ann")
    until(lambda: world.begin(event) is not None)


def test_a_receiver_rests_for_one_client_and_not_for_another(world: World) -> None:
    world.settle(begun(world, client="ann"), HookOutcome.RETRY, delay=RUN_OUT, is_slow=True)
    assert world.begin(ended_job(world, client="ann")) is None
    assert world.begin(ended_job(world, client="bob")) is not None


def test_what_one_client_loses_pushes_out_no_other(world: World) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in (outbox, memory_outbox):
            patch.setattr(module, "DEAD_LIMIT_OF_CLIENT", 2)
            patch.setattr(module, "DEAD_LIMIT", 4)
        given_up = list[HookTry]()
        for client in ("ann", "bob", "bob", "bob", "bob", "eve", "eve"):
            given_up.append(begun(world, client=client))
            assert world.settle(given_up[-1], HookOutcome.DEAD) is HookState.DEAD
    # Of bob's the newest two; and of all the newest four.
    kept = {attempt.event for attempt in given_up[3:]}
    assert {view.event for view in world.hooks(dead=True)} == kept
    assert world.run(ReplayHook(event=given_up[0].event)) is False
    # What is replayed makes room.
    assert world.run(ReplayHook(event=given_up[3].event)) is True
    again = world.begin(given_up[3].event)
    assert again is not None
    assert world.settle(again, HookOutcome.DELIVERED) is HookState.DELIVERED
    assert len(world.hooks(dead=True)) == 3


# --- watching ------------------------------------------------------------------------------------


def test_every_change_that_a_viewer_sees_has_a_version_of_its_own(world: World) -> None:
    job_id = world.submit().job_id
    versions = [world.view(job_id).version]

    def note() -> None:
        versions.append(world.view(job_id).version)

    job = world.claim()
    note()
    world.beat(job, step=1)
    note()
    world.beat(job, step=2)
    note()
    world.release(job)
    note()
    world.claim(lease=RUN_OUT)
    note()
    world.reap()
    note()
    job = world.claim()
    note()
    world.cancel(job_id)
    note()
    world.succeed(job)
    note()
    assert versions == list(range(1, len(versions) + 1))


def test_what_changes_nothing_has_no_version(world: World) -> None:
    job_id = world.submit().job_id
    job = world.claim()
    world.beat(job)
    world.cancel(job_id)
    before = world.view(job_id)
    world.beat(job)
    world.cancel(job_id)
    world.watch(job_id)
    world.show_preview(job, Preview(step=3, number=0, image=b"webp"))
    assert world.view(job_id) == before


def test_a_drained_and_a_cancelled_job_are_news(world: World) -> None:
    drained, cancelled = world.submit().job_id, world.submit().job_id
    world.cancel(cancelled)
    world.store.drain(Drain(app=APP, failure=FAILURE, job_ttl=JOB_TTL, broken=False))
    assert [world.view(job_id).version for job_id in (drained, cancelled)] == [2, 2]


def test_a_replica_hears_of_a_viewer_while_he_watches(world: World) -> None:
    job_id = world.submit().job_id
    assert world.watch(job_id) is JobStatus.QUEUED
    job = world.claim()
    assert world.beat(job) == [Pulse.WATCHED]
    assert world.watch(job_id, RUN_OUT) is JobStatus.RUNNING
    assert world.beat(job) == [Pulse.OK]
    world.watch(job_id)
    world.cancel(job_id)
    assert world.beat(job) == [Pulse.CANCEL]


def test_what_is_over_is_not_watched(world: World) -> None:
    unknown = new_job_id()
    assert world.watch(unknown) is None
    with pytest.raises(JobNotFoundError):
        world.view(unknown)
    world.submit()
    job = world.claim()
    world.succeed(job)
    assert world.watch(job.id) is JobStatus.SUCCEEDED
    if world.redis:  # the wish left no trace in the record of what is over
        assert not world.redis.hexists(keys.JOB + job.id, "watched")


def test_a_preview_is_that_of_the_running_attempt(world: World) -> None:
    job_id = world.submit().job_id
    assert world.preview(job_id) is None
    late = world.claim()
    seen = Preview(step=3, number=0, image=b"\x00webp\xff")
    assert world.show_preview(late, seen)
    assert world.preview(job_id) == seen
    world.release(late)
    assert world.preview(job_id) is None
    job = world.claim()
    assert world.preview(job_id) is None
    assert not world.show_preview(late, seen)
    assert world.preview(job_id) is None
    assert world.show_preview(job, Preview(step=9, number=1, image=b"new"))
    world.succeed(job)
    assert world.preview(job_id) is None
    assert not world.show_preview(job, seen)


def test_a_preview_runs_out(world: World) -> None:
    world.submit()
    job = world.claim()
    assert world.show_preview(job, Preview(step=3, number=0, image=b"webp"), timedelta(0))
    assert world.preview(job.id) is None


def test_the_places_of_many_jobs_are_seen_at_once(world: World) -> None:
    ids = [world.submit().job_id for _ in range(3)]
    unknown = new_job_id()
    world.claim()
    found = world.run(ViewPlaces(app=APP, job_ids=[*ids, unknown]))
    assert found == [
        Place(version=2, position=None),
        Place(version=1, position=0),
        Place(version=1, position=1),
        Place(version=None, position=None),
    ]


def test_jobs_that_were_cancelled_before_they_ran_take_bounded_room(world: World) -> None:
    ids = [world.submit(client="ann").job_id for _ in range(3)]
    for job_id in ids:
        world.cancel(job_id)
    others = world.submit(client="bob").job_id
    world.cancel(others)
    for _ in range(UNRUN_LIMIT - 1):
        world.cancel(world.submit(client="ann").job_id)
    for job_id in ids[:2]:
        with pytest.raises(JobNotFoundError):
            world.view(job_id)
    listed = world.run(ListJobs(client="ann", limit=2000, scan=2000)).jobs
    assert (len(listed), listed[-1].id) == (UNRUN_LIMIT, ids[2])
    assert world.view(others).status is JobStatus.CANCELLED


def test_a_job_that_never_ran_is_kept_for_minutes_and_one_that_did_for_its_time(
    world: World,
) -> None:
    never, short = world.submit().job_id, world.submit().job_id
    world.cancel(never)
    world.cancel(short, timedelta(seconds=30))
    world.submit()
    ran = world.claim()
    world.release(ran)
    world.cancel(ran.id)
    if world.redis is None:
        return  # the one in memory has no TTL to look at
    left = [int(world.redis.ttl(keys.JOB + each)) for each in (never, short, ran.id)]
    assert 500 < left[0] <= UNRUN_TTL.total_seconds()
    assert left[1] <= 30
    assert left[2] > UNRUN_TTL.total_seconds()
