"""The promises of batches, kept by the scripts on a real server and by the store in memory."""

import random
import threading
from dataclasses import replace
from datetime import timedelta

import pytest

from sdserve import keys
from sdserve.batch_operations import (
    BatchAdmission,
    CloseLines,
    Closing,
    FailLine,
    ListBatches,
    ReadPart,
    batch_of,
)
from sdserve.batches import (
    PART,
    ROOM_BYTES,
    BatchPlace,
    BatchState,
    LineStatus,
    dump_lines,
    pack_lines,
    room_of,
)
from sdserve.errors import BatchNotFoundError, JobExpiredError, JobNotFoundError
from sdserve.jobs import JobFailure, JobStatus
from sdserve.operations import Admission, Cancel, Drain
from tests.batch_world import Batches, create, lines
from tests.store_world import World
from tests.values import APP, JOB_TTL, METRICS, finish

pytestmark = pytest.mark.integration

GONE = JobFailure(code="app_gone", message="it was deleted")
NOW = timedelta(0)
URL = "https://receiver.example/hook"


# --- accepting -----------------------------------------------------------------------------------


def test_an_upload_becomes_a_batch_with_all_its_lines(world: World) -> None:
    batches = Batches(world.store)
    uploaded = lines(PART + 50)
    batch_id = batches.upload(uploaded).batch_id
    batch = batches.view(batch_id)
    assert (batch.state, batch.lines, batch.parts) == (BatchState.ACCEPTED, PART + 50, 2)
    parts = [world.run(ReadPart(batch_id=batch_id, part=n)) for n in range(2)]
    assert [line for part in parts for line in part.lines] == uploaded
    assert set(batches.words(batch_id)) == {"waiting"}
    assert batches.open == [batch_id]


def test_an_upload_of_which_a_part_is_missing_is_refused(world: World) -> None:
    operation = create(lines(3))
    assert world.run(operation).admission is BatchAdmission.LOST
    with pytest.raises(BatchNotFoundError):
        Batches(world.store).view(operation.batch_id)


def test_a_lost_reply_makes_no_second_batch(world: World) -> None:
    batches = Batches(world.store)
    first = batches.upload(lines(3))
    again = batches.upload(lines(3), batch_id=first.batch_id)
    assert (again.admission, again.batch_id) == (BatchAdmission.DUPLICATE, first.batch_id)
    assert batches.open == [first.batch_id]


def test_a_key_is_one_batch_and_another_upload_under_it_conflicts(world: World) -> None:
    batches = Batches(world.store)
    first = batches.upload(lines(3), idempotency_key="k")
    again = batches.upload(lines(3), idempotency_key="k")
    other = batches.upload(lines(4), idempotency_key="k", digest="another")
    theirs = batches.upload(lines(3), idempotency_key="k", client="bob")
    assert (again.admission, again.batch_id) == (BatchAdmission.DUPLICATE, first.batch_id)
    assert (other.admission, other.batch_id) == (BatchAdmission.CONFLICT, first.batch_id)
    assert theirs.admission is BatchAdmission.CREATED


def test_unfinished_batches_take_room_and_refuse_what_has_none(world: World) -> None:
    batches = Batches(world.store)
    batches.make(1)  # takes a whole part
    refused = batches.upload(lines(1), room_limit=2 * PART - 1)
    assert (refused.admission, refused.taken) == (BatchAdmission.FULL, PART)
    assert batches.upload(lines(1), room_limit=2 * PART).admission is BatchAdmission.CREATED


def test_long_lines_take_more_room(world: World) -> None:
    batches = Batches(world.store)
    text = random.Random(1).randbytes(120_000).hex()  # 120 kB, compressed
    first, second = lines(2)
    uploaded = [replace(first, params=replace(first.params, prompt=text)), second]
    room = room_of(pack_lines(dump_lines(uploaded)))
    assert 120_000 < room * ROOM_BYTES < 160_000
    for bound, expected in ((room - 1, BatchAdmission.FULL), (room, BatchAdmission.CREATED)):
        assert batches.upload(uploaded, room_limit=bound).admission is expected


def test_a_client_has_room_of_his_own_and_a_nameless_one_no_such_bound(world: World) -> None:
    batches = Batches(world.store)
    for client, second in (("ann", BatchAdmission.CLIENT_FULL), ("", BatchAdmission.CREATED)):
        for expected in (BatchAdmission.CREATED, second):
            uploaded = batches.upload(lines(1), client=client, client_room=PART)
            assert uploaded.admission is expected
    assert batches.upload(lines(1), client="bob", client_room=PART).taken == 0


def test_a_batch_with_a_webhook_is_refused_while_too_many_events_wait(world: World) -> None:
    batches = Batches(world.store)
    for webhook in (URL, URL):
        batches.close(batches.make(1, webhook=webhook))
    refused = batches.upload(lines(1), webhook=URL, webhook_limit=2)
    assert (refused.admission, refused.taken) == (BatchAdmission.WEBHOOKS_FULL, 2)
    created = BatchAdmission.CREATED
    assert batches.upload(lines(1), webhook_limit=2).admission is created
    other = batches.upload(lines(1), webhook=URL, webhook_limit=2, client="ann")
    assert other.admission is created


def test_a_line_that_can_be_no_job_fails_in_its_turn_once(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(3)
    failure = JobFailure(code="images_spent", message="Too many.")

    def fail(line: int, previous: int) -> bool:
        place = BatchPlace(batch=batch_id, line=line, previous=previous)
        return world.run(FailLine(app=APP, place=place, failure=failure, job_ttl=JOB_TTL))

    assert not fail(2, 1)  # not its turn yet
    assert batches.feed(batch_id, 1).admission is Admission.QUEUED
    assert [fail(2, 1), fail(2, 1)] == [True, False]
    assert batches.feed(batch_id, 2, 1).admission is Admission.DUPLICATE
    assert batches.words(batch_id) == ["queued", "failed", "waiting"]
    assert batches.states(batch_id)[1].error == failure
    assert fail(3, 2)
    world.succeed(world.claim())
    seen = batches.view(batch_id)
    assert (seen.succeeded, seen.failed, seen.state) == (1, 2, BatchState.COMPLETED)
    assert [lines_of.fed for lines_of in seen.apps] == [3]
    assert not fail(3, 2)


def test_no_line_fails_after_the_end_of_its_app(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(2, APP, "sd-other")
    batches.close(batch_id, APP, GONE)
    place = BatchPlace(batch=batch_id, line=1, previous=0)
    assert not world.run(FailLine(app=APP, place=place, failure=GONE, job_ttl=JOB_TTL))
    assert batches.view(batch_id).failed == 1


def test_the_oldest_ended_batch_makes_room_and_nothing_unfinished_does(world: World) -> None:
    batches = Batches(world.store)
    unfinished, oldest, old = (batches.make(1) for _ in range(3))
    for batch_id in (oldest, old):
        batches.close(batch_id)
    batches.make(1, room_limit=3 * PART)
    with pytest.raises(BatchNotFoundError):
        batches.view(oldest)
    assert batches.view(old).state is BatchState.CANCELLED
    assert batches.view(unfinished).state is BatchState.ACCEPTED
    with pytest.raises(BatchNotFoundError):
        world.run(ReadPart(batch_id=oldest, part=0))
    assert oldest not in batches.open


def test_ones_own_ended_batches_make_room_before_anothers(world: World) -> None:
    batches = Batches(world.store)
    theirs = batches.make(1, client="ann")
    mine = batches.make(1, client="bob")
    for batch_id in (theirs, mine):
        batches.close(batch_id)
    batches.make(1, client="bob", room_limit=2 * PART)
    assert batches.view(theirs).state is BatchState.CANCELLED
    with pytest.raises(BatchNotFoundError):
        batches.view(mine)


def test_what_was_stored_for_a_refused_upload_is_gone(world: World) -> None:
    batches = Batches(world.store)
    refused = batches.upload(lines(1), room_limit=PART - 1)
    assert refused.admission is BatchAdmission.FULL
    again = world.run(create(lines(1), batch_id=refused.batch_id))
    assert again.admission is BatchAdmission.LOST


def test_a_lost_reply_under_a_key_leaves_the_batch_whole(world: World) -> None:
    batches = Batches(world.store)
    first = batches.upload(lines(1), idempotency_key="k")
    again = batches.upload(lines(1), idempotency_key="k", batch_id=first.batch_id)
    assert again.admission is BatchAdmission.DUPLICATE
    assert world.run(ReadPart(batch_id=first.batch_id, part=0)).lines


def test_a_refused_upload_drops_nobody(world: World) -> None:
    batches = Batches(world.store)
    ended = batches.make(1)
    batches.close(ended)
    batches.make(1)
    refused = batches.upload(lines(1), room_limit=PART)
    assert refused.admission is BatchAdmission.FULL
    assert batches.view(ended).state is BatchState.CANCELLED


def test_batches_are_listed_newest_first_for_their_owner(world: World) -> None:
    batches = Batches(world.store)
    mine = []
    for client in ("ann", "bob", "ann", "ann"):
        batch_id = batches.make(1, client=client)
        mine += [batch_id] if client == "ann" else []
    listed = world.run(ListBatches(client="ann", limit=2))
    assert listed == [mine[2], mine[1]]
    assert world.run(ListBatches(client="ann", after=listed[-1], limit=2)) == [mine[0]]
    assert len(world.run(ListBatches(client=None, limit=10))) == 4
    assert world.run(ListBatches(client="ann", after="unknown", limit=2)) == []


# --- handing lines over --------------------------------------------------------------------------


def test_a_line_becomes_one_job_however_often_it_is_fed(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(3)
    first = batches.feed(batch_id, 1)
    again = batches.feed(batch_id, 1)
    assert (first.admission, again.admission) == (Admission.QUEUED, Admission.DUPLICATE)
    job = world.view(first.job_id)
    assert (job.batch, job.line, job.params.seed) == (batch_id, 1, 7)
    assert batches.words(batch_id) == ["queued", "waiting", "waiting"]
    assert batches.view(batch_id).state is BatchState.RUNNING
    assert world.store.app_status(APP).queued == 1


def test_a_line_whose_job_has_expired_is_not_run_again(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(2)
    job_id = batches.feed(batch_id, 1, line_ttl=NOW).job_id
    world.succeed(world.claim())
    with pytest.raises((JobExpiredError, JobNotFoundError)):
        world.view(job_id)
    assert batches.feed(batch_id, 1).admission is Admission.DUPLICATE
    assert batches.words(batch_id) == ["succeeded", "waiting"]


def test_no_line_is_skipped(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(3)
    batches.feed(batch_id, 1)
    assert batches.feed(batch_id, 3, previous=2).admission is Admission.DUPLICATE
    assert batches.words(batch_id) == ["queued", "waiting", "waiting"]


def test_two_feeders_at_once_make_one_job_a_line(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(30)
    accepted = list[int]()

    def feed() -> None:
        for line in range(1, 31):
            if batches.feed(batch_id, line).admission is Admission.QUEUED:
                accepted.append(line)

    threads = [threading.Thread(target=feed) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(accepted) == sorted(set(accepted))
    assert world.store.app_status(APP).queued == len(accepted)
    assert batches.view(batch_id).apps[0].fed == len(accepted)


def test_the_lines_of_two_apps_do_not_wait_for_each_other(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(4, APP, "sd-other")
    batches.feed(batch_id, 2, previous=0, app="sd-other")
    batches.feed(batch_id, 4, previous=2, app="sd-other")
    assert batches.words(batch_id) == ["waiting", "queued", "waiting", "queued"]
    batches.feed(batch_id, 1, previous=0)
    assert [app.fed for app in batches.view(batch_id).apps] == [1, 2]


def test_a_refused_line_keeps_its_turn(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(2)
    world.submit()
    assert batches.feed(batch_id, 1, queue_limit=1).admission is Admission.FULL
    assert batches.words(batch_id) == ["waiting", "waiting"]
    assert batches.feed(batch_id, 1).admission is Admission.QUEUED


def test_a_batch_does_not_delay_what_its_own_client_waits_for(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(10, client="ann")
    for line in range(1, 11):
        batches.feed(batch_id, line, client="ann")
    world.claim()
    own = world.submit(client="ann")
    assert own.ahead <= 1


# --- ends ----------------------------------------------------------------------------------------


def test_an_end_is_counted_once_and_kept_with_its_line(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(3)
    for line in (1, 2, 3):
        batches.feed(batch_id, line)
    job = world.claim()
    world.succeed(job)
    world.run(finish(job.id, job.fence, JobStatus.SUCCEEDED))  # its reply was lost
    bad = world.claim()
    failure = JobFailure(code="out_of_memory", message="too large")
    world.run(finish(bad.id, bad.fence, JobStatus.FAILED, error=failure))
    batch = batches.view(batch_id)
    assert (batch.succeeded, batch.failed, batch.cancelled) == (1, 1, 0)
    assert batch.state is BatchState.RUNNING
    done, failed, queued = batches.states(batch_id)
    assert (done.status, done.seeds, done.metrics) == (LineStatus.SUCCEEDED, (0,), METRICS)
    assert world.images(done.result_keys) == [b"png"]
    assert (failed.status, failed.error) == (LineStatus.FAILED, failure)
    assert queued.status is LineStatus.QUEUED


def test_the_last_end_completes_the_batch(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(2)
    for line in (1, 2):
        batches.feed(batch_id, line)
    world.succeed(world.claim())
    assert batches.words(batch_id) == ["succeeded", "queued"]
    running = world.claim()
    assert batches.words(batch_id) == ["succeeded", "running"]
    world.succeed(running)
    batch = batches.view(batch_id)
    assert (batch.state, batch.succeeded, batch.live) == (BatchState.COMPLETED, 2, {})
    assert batch.ended_at is not None


def test_the_end_of_a_batch_is_told_once(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(2, webhook=URL)
    for line in (1, 2):
        batches.feed(batch_id, line)
        assert world.hooks() == []
        job = world.claim()
        world.succeed(job)
        world.succeed(job)  # its reply was lost
    assert world.take() == [f"batch_{batch_id}_completed"]
    attempt = world.begin(f"batch_{batch_id}_completed")
    assert attempt is not None
    assert attempt.url == URL
    assert batch_of(attempt.subject, live={}) == batches.view(batch_id)


def test_the_end_of_a_cancelled_batch_is_told_when_its_last_job_stops(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(3, webhook=URL)
    batches.feed(batch_id, 1)
    job = world.claim()
    batches.close(batch_id)
    batches.close(batch_id)
    world.cancel(job.id)
    assert world.hooks() == []
    world.succeed(job)
    attempt = world.begin(f"batch_{batch_id}_cancelled")
    assert attempt is not None
    assert batch_of(attempt.subject, live={}) == batches.view(batch_id)
    # Where no job runs, the cancel itself is the end.
    idle = batches.make(1, webhook=URL)
    batches.close(idle)
    batches.close(idle)
    assert [hook.event for hook in world.hooks() if idle in hook.event] == [
        f"batch_{idle}_cancelled"
    ]


def test_a_batch_without_webhook_tells_nobody(world: World) -> None:
    batches = Batches(world.store)
    batches.close(batches.make(1))
    assert world.hooks() == []


def test_a_job_of_a_batch_goes_before_its_line_does(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(1)
    job_id = batches.feed(batch_id, 1, line_ttl=NOW).job_id
    world.succeed(world.claim())
    with pytest.raises((JobExpiredError, JobNotFoundError)):
        world.view(job_id)
    assert batches.words(batch_id) == ["succeeded"]


def test_an_ended_batch_expires(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(1)
    batches.feed(batch_id, 1)
    world.cancel(world.claim().id)
    world.run(
        finish(batches.submission(batch_id, 1, 0).job_id, 1, JobStatus.SUCCEEDED, job_ttl=NOW)
    )
    with pytest.raises(BatchNotFoundError):
        batches.view(batch_id)
    if world.redis:
        assert world.redis.keys(f"{keys.BATCH}{batch_id}*") == []


def test_a_reaped_or_drained_job_ends_its_line_with_the_reason(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(2)
    batches.feed(batch_id, 1, max_attempts=1)
    batches.feed(batch_id, 2)
    world.claim(lease=NOW)
    world.reap()
    world.run(Drain(app=APP, failure=GONE, job_ttl=JOB_TTL, broken=False))
    errors = [state.error.code if state.error else None for state in batches.states(batch_id)]
    assert errors == ["worker_lost", "app_gone"]
    assert batches.view(batch_id).state is BatchState.COMPLETED


def test_jobs_that_belong_to_no_batch_change_none(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(1)
    world.submit()
    world.succeed(world.claim())
    assert batches.view(batch_id).ended == 0


# --- closing -------------------------------------------------------------------------------------


def test_a_cancel_ends_what_has_no_job_and_hands_over_no_more(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(4)
    job_id = batches.feed(batch_id, 1).job_id
    assert batches.close(batch_id) is Closing.CLOSED
    assert batches.close(batch_id) is Closing.CLOSED  # its reply was lost
    assert batches.feed(batch_id, 2).admission is Admission.CLOSED
    batch = batches.view(batch_id)
    assert (batch.state, batch.cancelled, batch.live) == (BatchState.CANCELLING, 3, {job_id: APP})
    world.run(Cancel(app=APP, job_id=job_id, job_ttl=JOB_TTL))
    assert batches.view(batch_id).state is BatchState.CANCELLED
    assert batches.words(batch_id) == ["cancelled"] * 4
    assert batches.close(batch_id) is Closing.ENDED


def test_a_batch_without_jobs_is_cancelled_at_once(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(4, APP, "sd-other")
    batches.close(batch_id)
    assert batches.view(batch_id).state is BatchState.CANCELLED
    assert batches.close("unknown") is Closing.MISSING


def test_a_lost_app_fails_its_own_lines_with_the_reason(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(4, APP, "sd-other")
    batches.feed(batch_id, 2, previous=0, app="sd-other")
    batches.close(batch_id, "sd-other", GONE)
    assert batches.words(batch_id) == ["waiting", "queued", "waiting", "failed"]
    assert batches.states(batch_id)[3].error == GONE
    batch = batches.view(batch_id)
    assert (batch.state, batch.failed) == (BatchState.RUNNING, 1)
    again = batches.feed(batch_id, 4, previous=2, app="sd-other")
    assert again.admission is Admission.CLOSED
    assert batches.feed(batch_id, 1, previous=0).admission is Admission.QUEUED


def test_a_cancel_keeps_how_a_lost_apps_lines_ended(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(4, APP, "sd-other")
    batches.close(batch_id, "sd-other", GONE)
    batches.close(batch_id)
    batch = batches.view(batch_id)
    assert (batch.failed, batch.cancelled) == (2, 2)
    assert batches.words(batch_id) == ["cancelled", "failed", "cancelled", "failed"]


# --- packing -------------------------------------------------------------------------------------


def test_packed_results_read_the_same_and_a_repeat_changes_nothing(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(2)
    for line in (1, 2):
        batches.feed(batch_id, line)
        world.succeed(world.claim())
    before = batches.states(batch_id)
    assert batches.open == [batch_id]
    assert batches.pack(batch_id, 0)
    assert not batches.pack(batch_id, 0)
    assert batches.states(batch_id) == before
    assert batches.open == []
    if world.redis:
        packed = f"{keys.BATCH}{batch_id}:res:0"
        assert world.redis.exists(f"{keys.BATCH}{batch_id}:out:0") == 0
        assert 0 < int(world.redis.pttl(packed)) <= JOB_TTL.total_seconds() * 1000


def test_a_result_that_came_after_the_look_is_not_packed_away(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(2)
    for line in (1, 2):
        batches.feed(batch_id, line)
    world.succeed(world.claim())
    stale = world.run(ReadPart(batch_id=batch_id, part=0)).records
    world.succeed(world.claim())
    assert not batches.pack_these(batch_id, 0, stale)
    assert batches.words(batch_id) == ["succeeded", "succeeded"]


def test_parts_are_packed_in_their_order(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(PART + 1)
    assert not batches.pack(batch_id, 1)
    batches.close(batch_id)
    assert batches.pack(batch_id, 0)
    assert batches.open == [batch_id]
    assert batches.pack(batch_id, 1)
    assert batches.open == []


def test_an_open_batch_that_is_gone_is_forgotten(world: World) -> None:
    batches = Batches(world.store)
    batch_id = batches.make(1)
    batches.run(CloseLines(batch_id=batch_id, job_ttl=NOW))  # and it has expired
    assert batches.open == [batch_id]
    assert not batches.pack_these(batch_id, 0, {})
    assert batches.open == []
