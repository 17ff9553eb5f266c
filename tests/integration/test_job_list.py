"""Pages of jobs: the promises of their script, kept by both stores."""

import re
from datetime import timedelta

import pytest

from sdserve.job_list import CURSOR, JobPage, ListJobs, ListPlace
from sdserve.jobs import JobStatus
from tests.keys import create_key
from tests.store_world import World
from tests.values import APP, submit

pytestmark = pytest.mark.integration

OTHER = "sd-other"


def page(world: World, client: str | None = "a", **wanted: object) -> JobPage:
    listed = world.run(ListJobs(client=client, **wanted))  # pyright: ignore[reportArgumentType]
    assert isinstance(listed, JobPage)
    return listed


def ids(listed: JobPage) -> list[str]:
    return [job.id for job in listed.jobs]


def submit_some(world: World, count: int, client: str = "a", app: str = APP) -> list[str]:
    """Their ids, the newest first."""
    made = [world.submit(client=client, app=app).job_id for _ in range(count)]
    return made[::-1]


def test_a_clients_jobs_are_its_own_newest_first(world: World) -> None:
    mine = submit_some(world, 3)
    others = submit_some(world, 2, client="b")
    nobodys = submit_some(world, 1, client="")
    assert ids(page(world)) == mine
    assert ids(page(world, client="b")) == others
    assert ids(page(world, client="")) == nobodys
    assert ids(page(world, client="c")) == []
    assert ids(page(world, client=None)) == nobodys + others + mine


def test_a_listed_job_is_the_job(world: World) -> None:
    submit_some(world, 2)
    world.claim()
    listed = page(world)
    assert list(listed.jobs) == [world.view(job.id) for job in listed.jobs]
    assert [job.position for job in listed.jobs] == [0, None]
    assert listed.last is None


def test_pages_have_every_job_once(world: World) -> None:
    mine = submit_some(world, 7)
    found, after, pages = list[str](), None, 0
    while pages == 0 or after is not None:
        one = page(world, limit=3, after=after)
        found, after, pages = found + ids(one), one.last, pages + 1
    assert (found, pages) == (mine, 3)


def test_the_next_page_is_the_same_while_new_jobs_come(world: World) -> None:
    mine = submit_some(world, 4)
    first = page(world, limit=2)
    submit_some(world, 3)
    assert ids(page(world, limit=2, after=first.last)) == mine[2:]


@pytest.mark.parametrize("client", ["a", None])
def test_an_app_and_a_status_narrow_the_list(world: World, client: str | None) -> None:
    here = submit_some(world, 3)
    there = submit_some(world, 2, app=OTHER)
    running = world.claim().id
    assert ids(page(world, client, app=OTHER)) == there
    assert ids(page(world, client, app=APP)) == here
    assert ids(page(world, client, status=JobStatus.RUNNING)) == [running]
    assert ids(page(world, client, app=OTHER, status=JobStatus.RUNNING)) == []
    queued = [*there, *(job_id for job_id in here if job_id != running)]
    assert ids(page(world, client, status=JobStatus.QUEUED)) == queued


def test_the_work_of_a_page_is_bounded_however_few_jobs_match(world: World) -> None:
    mine = submit_some(world, 5)
    world.cancel(mine[-1])
    found, after, pages = list[str](), None, 0
    while pages == 0 or after is not None:
        one = page(world, status=JobStatus.CANCELLED, scan=2, after=after)
        found, after, pages = found + ids(one), one.last, pages + 1
    assert (found, pages) == ([mine[-1]], 3)


def test_a_job_whose_record_is_gone_is_not_listed(world: World) -> None:
    newer, older = submit_some(world, 2)
    world.cancel(older, timedelta(0))
    assert ids(page(world)) == [newer]


def test_a_place_that_was_forgotten_meanwhile_is_gone_on_from(world: World) -> None:
    job = submit()
    mine = submit_some(world, 1)
    created = int(world.view(mine[0]).created_at.timestamp() * 1000)
    for after, rest in ((created - 1, []), (created + 1, mine)):
        place = ListPlace(created=after, job_id=job.job_id)
        assert ids(page(world, after=place)) == rest


def test_retention_takes_jobs_out_of_the_lists(world: World) -> None:
    ann = create_key(world.store, "ann").key_id
    for client in ("", ann):
        gone, kept = [world.submit(client=client).job_id for _ in range(2)]
        world.cancel(gone, timedelta(0))
        assert page(world, client, limit=1).last is not None
        world.store.trim(older_than=timedelta(seconds=-5))
        listed = page(world, client, limit=1)
        assert (ids(listed), listed.last) == ([kept], None)


def test_a_cursor_is_read_as_it_was_written() -> None:
    place = ListPlace(created=1_764_000_000_000, job_id=submit().job_id)
    assert ListPlace.read(place.cursor) == place
    assert re.fullmatch(CURSOR, place.cursor)


@pytest.mark.parametrize("text", ["A" * 32, "_" * 32, "-09az" * 6 + "Zz"])
def test_every_text_of_the_form_is_a_place(world: World, text: str) -> None:
    assert re.fullmatch(CURSOR, text)
    place = ListPlace.read(text)
    assert place.cursor == text
    submit_some(world, 1)
    page(world, after=place)  # wherever that is


@pytest.mark.parametrize("text", ["", "x", "A" * 31, "A" * 33, "A" * 31 + "=", "A" * 31 + "+"])
def test_nothing_else_is_a_cursor(text: str) -> None:
    assert not re.fullmatch(CURSOR, text)
