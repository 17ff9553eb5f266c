"""Both HTTP clients and the progress bar against a real server on a real socket."""

import io
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi.responses import JSONResponse, PlainTextResponse

from deploy_scripts.progress import follow
from sdserve.batches import BatchState
from sdserve.client import (
    ApiError,
    AsyncSdClient,
    Fault,
    InvalidUrlError,
    NotSavedError,
    SdClient,
    ServerAwayError,
    UnexpectedAnswerError,
    Usage,
    WaitTimeoutError,
)
from sdserve.jobs import JobStatus
from tests.fake_server import (
    APP,
    BATCH,
    PNG,
    FakeServer,
    picture,
    problem,
    proxy_not_found,
    wait_until,
)

FOX = {"prompt": "a fox", "seed": 7}


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture(params=["sync", "async"])
def client(server: FakeServer, request: pytest.FixtureRequest) -> Iterator[SdClient]:
    with made_client(request.param, server.url) as made:
        yield made


@contextmanager
def made_client(kind: str, url: str, **options: Any) -> Generator[SdClient]:
    """Either client under the synchronous one's interface, so that both keep the same promises."""
    options = {"patience": timedelta(seconds=10)} | options
    if kind == "sync":
        with SdClient(url, **options) as client:
            yield client
    else:
        with start_blocking_portal() as portal:
            waits = Waits(AsyncSdClient(url, **options), portal)
            yield cast(SdClient, waits)
            waits.close()


class Waits:
    """An asynchronous client whose calls are waited for."""

    def __init__(self, client: AsyncSdClient, portal: BlockingPortal) -> None:
        self._client = client
        self._portal = portal

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            answer = getattr(self._client, name)(*args, **options)
            if isinstance(answer, AsyncGenerator):
                return self._items(answer)
            return self._portal.call(_awaited, answer)

        return call

    def _items(self, series: AsyncGenerator[Any]) -> Iterator[Any]:
        end = object()
        try:
            while (item := self._portal.call(anext, series, end)) is not end:
                yield item
        finally:
            self._portal.call(series.aclose)


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_cold_app_answers_with_a_job_that_can_be_watched_to_its_picture(
    server: FakeServer, client: SdClient
) -> None:
    server.seconds = 0.3
    accepted = client.submit(APP, FOX)
    assert accepted.status is JobStatus.QUEUED
    assert accepted.phase == "reading file 43%"
    assert accepted.progress is not None
    assert accepted.progress.steps == 4

    *_, final = client.watch(accepted.id)

    assert final.status is JobStatus.SUCCEEDED
    assert final.parameters["seed"] == 7
    assert final.seconds == 2.0
    assert [image.data for image in client.pictures(final)] == [picture(7)]
    assert client.image(final.id).data == picture(7)


def test_a_warm_app_answers_with_the_finished_job(server: FakeServer, client: SdClient) -> None:
    server.is_warm = True
    done = client.submit(APP, FOX)
    assert done.status is JobStatus.SUCCEEDED
    assert done.compute_metrics == {"query_duration_seconds": 2.0}
    assert client.pictures(done)[0].media_type == "image/png"


def test_respond_async_is_a_job_even_when_warm(server: FakeServer, client: SdClient) -> None:
    server.is_warm = True
    assert not client.submit(APP, FOX, prefer="respond-async").status.is_final


def test_several_pictures_come_in_order(server: FakeServer, client: SdClient) -> None:
    server.is_warm = True
    done = client.submit(APP, {**FOX, "num_images": 3})
    assert [image.data for image in client.pictures(done)] == [picture(k) for k in (7, 8, 9)]


def test_an_unfinished_job_has_no_pictures(server: FakeServer, client: SdClient) -> None:
    server.seconds = 60
    with pytest.raises(UnexpectedAnswerError, match="is queued and has no result"):
        client.pictures(client.submit(APP, FOX))


def test_pictures_that_are_gone_are_an_error_not_an_empty_list(
    server: FakeServer, client: SdClient
) -> None:
    server.seconds = 0.0001
    job = client.submit(APP, FOX)
    *_, final = client.watch(job.id)
    server.expired_ids.add(job.id)
    again = client.submit(APP, FOX, idempotency_key=next(iter(server.keys)))
    assert again.id == final.id
    with pytest.raises(ApiError, match="has expired") as caught:
        client.pictures(again)
    assert caught.value.status == 410


def test_a_full_queue_is_waited_for_as_long_as_it_says(
    server: FakeServer, client: SdClient
) -> None:
    server.refusals = [problem(503, "queue_full", "The queue is full.", retry_after=1)]
    began = time.monotonic()
    client.submit(APP, FOX)
    assert time.monotonic() - began >= 1
    assert server.prompts == ["a fox"]


def test_a_starting_proxy_is_waited_for(server: FakeServer, client: SdClient) -> None:
    server.refusals = [proxy_not_found(), PlainTextResponse("Internal Server Error", 500)]
    assert client.submit(APP, FOX).id in server.jobs


def test_a_lost_answer_does_not_become_a_second_job(server: FakeServer, client: SdClient) -> None:
    server.lose_answers = 2
    job = client.submit(APP, FOX)
    assert len(server.submissions) == 3
    assert list(server.jobs) == [job.id]


def test_equal_fields_in_another_order_are_the_same_request(
    server: FakeServer, client: SdClient
) -> None:
    first = client.submit(APP, {"prompt": "a fox", "seed": 7}, idempotency_key="k")
    second = client.submit(APP, {"seed": 7, "prompt": "a fox"}, idempotency_key="k")
    assert first.id == second.id


def test_a_refused_request_is_one_sentence_and_is_not_repeated(
    server: FakeServer, client: SdClient
) -> None:
    server.refused_prompts = {"a fox"}
    with pytest.raises(ApiError) as caught:
        client.submit(APP, FOX)
    assert str(caught.value) == "prompt: this server dislikes it"
    assert caught.value.status == 422
    assert len(server.submissions) == 1


def test_the_faults_of_a_refusal_are_values(server: FakeServer, client: SdClient) -> None:
    fault = {"field": "prompt", "message": "is blank", "line": 3}
    known = (Fault(field="prompt", message="is blank", line=3),)
    for errors, faults in (([fault], known), ("of another server", ()), (None, ())):
        server.refusals = [JSONResponse({"errors": errors}, 422)]
        with pytest.raises(ApiError) as caught:
            client.models()
        assert caught.value.faults == faults


def test_a_broken_app_is_not_waited_for(server: FakeServer, client: SdClient) -> None:
    server.refusals = [problem(503, "app_broken", "The app cannot load its checkpoint.")]
    with pytest.raises(ApiError, match="cannot load its checkpoint"):
        client.submit(APP, FOX)


def test_an_unknown_job_is_an_api_error(client: SdClient) -> None:
    with pytest.raises(ApiError, match="No job has the id 'nope'") as caught:
        client.job("nope")
    assert caught.value.status == 404


def test_cancel_ends_a_job_and_a_second_cancel_says_so(
    server: FakeServer, client: SdClient
) -> None:
    server.seconds = 60
    job = client.submit(APP, FOX)
    assert client.cancel(job.id).status is JobStatus.CANCELLED
    with pytest.raises(ApiError, match="cancelled already") as caught:
        client.cancel(job.id)
    assert caught.value.status == 409


def test_models_are_listed(client: SdClient) -> None:
    assert [model["id"] for model in client.models()] == [APP]


def test_jobs_are_listed_page_by_page(server: FakeServer, client: SdClient) -> None:
    ids = [client.submit(APP, {"prompt": str(k)}, prefer="respond-async").id for k in range(5)]
    assert [job.id for job in client.jobs(app=APP, page=2)] == ids[::-1]
    server.jobs[ids[0]].is_cancelled = True
    assert [job.id for job in client.jobs(status=JobStatus.CANCELLED)] == ids[:1]


def test_a_batch_is_uploaded_and_looked_at(server: FakeServer, client: SdClient) -> None:
    lines = [{"prompt": "a fox"}, {"prompt": "an owl", "width": 64}]
    batch = client.create_batch(lines, app=APP, defaults={"width": 32}, idempotency_key="k")
    assert server.batch_lines == [
        {"app": APP, "width": 32, "prompt": "a fox"},
        {"app": APP, "width": 64, "prompt": "an owl"},
    ]
    assert server.batch_keys == ["k"]
    assert (batch.status, batch.counts.waiting) == (BatchState.ACCEPTED, 2)
    assert client.batch(batch.id).status is BatchState.RUNNING
    assert client.cancel_batch(batch.id).status is BatchState.CANCELLING
    with pytest.raises(ApiError, match="No batch"):
        client.batch("nope")
    client.create_batch(b'{ "prompt" : "as it is" }\n', app=APP)
    assert server.batch_lines == [{"app": APP, "prompt": "as it is"}]


def test_results_of_a_batch_go_on_after_the_last_whole_line(
    server: FakeServer, client: SdClient
) -> None:
    batch = client.create_batch([{"prompt": str(k)} for k in range(4)], app=APP)
    server.cut_streams = 1  # in the middle of line 3
    assert [line.line for line in client.batch_results(batch.id, after=1)] == [2, 3, 4]
    assert server.cursors == [1, 2]


def test_a_download_that_breaks_begins_again_and_is_whole(
    server: FakeServer, client: SdClient, tmp_path: Path
) -> None:
    server.cut_streams = 2
    path = client.download_batch(BATCH, tmp_path / "batch.zip")
    assert path.read_bytes() == PNG * 3000
    assert [found.name for found in tmp_path.iterdir()] == ["batch.zip"]
    assert server.cut_streams == 0


def test_usage_is_read_as_numbers(server: FakeServer, client: SdClient) -> None:
    usage = client.usage(by="day", first=date(2026, 11, 1), app=APP)
    assert server.usage_asked == [{"by": "day", "from": "2026-11-01", "app": APP}]
    assert usage.total == Usage(jobs_succeeded=2, images=3, gpu_seconds=1.5)
    (row,) = usage.data
    assert (row.day, row.key, row.images) == (date(2026, 11, 24), None, 3)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_no_server_is_a_sentence_after_the_patience(kind: str) -> None:
    waits: list[str] = []
    nobody = FakeServer()  # its port is free: never started
    patience = timedelta(seconds=0.4)
    with (
        made_client(kind, nobody.url, patience=patience, waiting=waits.append) as client,
        pytest.raises(ServerAwayError, match="start the server"),
    ):
        client.models()
    assert waits
    assert nobody.url in waits[0]


def test_a_server_that_comes_back_is_found_again(server: FakeServer, client: SdClient) -> None:
    server.seconds = 0.3
    job = client.submit(APP, FOX)
    server.stop()
    timer = threading.Timer(0.5, server.start)
    timer.start()
    *_, final = client.watch(job.id)
    timer.join()
    assert final.status is JobStatus.SUCCEEDED


@pytest.mark.parametrize("is_warm", [True, False])
def test_generate_waits_to_the_end_warm_or_cold(
    server: FakeServer, client: SdClient, is_warm: bool
) -> None:
    server.is_warm, server.seconds = is_warm, 0.2
    done = client.generate(APP, FOX)
    assert done.status is JobStatus.SUCCEEDED
    assert client.pictures(done)[0].data == picture(7)


def test_generate_returns_a_failed_job_however_it_learns_of_it(
    server: FakeServer, client: SdClient
) -> None:
    server.failing_prompts = {"a fox"}
    polled = client.generate(APP, FOX, idempotency_key="k")
    told = client.generate(APP, FOX, idempotency_key="k")  # a 500 with the job's id
    assert polled == told
    assert told.error is not None
    assert told.error.message == "The model said no."


def test_a_wait_that_is_too_short_says_so_and_leaves_the_job(
    server: FakeServer, client: SdClient
) -> None:
    server.seconds = 60
    with pytest.raises(WaitTimeoutError, match=r"still queued after 0\.3 s"):
        client.generate(APP, FOX, at_most=timedelta(seconds=0.3))
    (job,) = server.jobs.values()
    assert not job.is_final


def test_a_stream_tells_each_change_once_and_ends_with_the_end(
    server: FakeServer, client: SdClient
) -> None:
    server.seconds = 0.4
    events = list(client.stream(client.submit(APP, FOX).id))
    steps = [event.job.progress.step for event in events if event.job.progress]
    assert steps == sorted(set(steps[:-1])) + steps[-1:]
    assert events[-1].job.status is JobStatus.SUCCEEDED
    assert [event.preview for event in events] == [None] * len(events)
    assert client.pictures(events[-1].job)[0].data == picture(7)


def test_a_stream_that_breaks_goes_on_where_it_was(server: FakeServer, client: SdClient) -> None:
    server.seconds = 0.6
    server.cut_streams = 2
    events = list(client.stream(client.submit(APP, FOX).id))
    assert server.streams[0] is None
    assert len(server.streams) == 3
    assert [int(last) for last in server.streams[1:] if last] == [
        event.job.progress.step for event in events[:2] if event.job.progress
    ]
    assert events[-1].job.status is JobStatus.SUCCEEDED


def test_a_stream_outlives_its_server(server: FakeServer, client: SdClient) -> None:
    server.seconds = 1
    series = client.stream(client.submit(APP, FOX).id)
    next(series)
    server.stop()
    timer = threading.Timer(0.3, server.start)
    timer.start()
    *_, last = series
    timer.join()
    assert last.job.status is JobStatus.SUCCEEDED


def test_previews_come_with_the_state_they_belong_to(server: FakeServer, client: SdClient) -> None:
    server.seconds = 0.3
    events = list(client.stream(client.submit(APP, FOX).id, previews=True))
    shown = [event for event in events if event.preview]
    assert shown
    for event in shown:
        assert event.preview is not None
        assert event.job.progress is not None
        assert event.preview.picture.data == picture(event.job.progress.step)
        assert event.preview.picture.media_type == "image/webp"


def test_a_stream_of_an_unknown_job_is_an_api_error(client: SdClient) -> None:
    with pytest.raises(ApiError, match="No job has the id 'nope'"):
        next(client.stream("nope"))


def test_leaving_a_stream_closes_its_connection(server: FakeServer, client: SdClient) -> None:
    server.seconds = 60
    series = client.stream(client.submit(APP, FOX).id)
    next(series)
    cast(Any, series).close()
    wait_until(lambda: server.open_streams == 0)


def test_saved_pictures_are_whole_files(
    server: FakeServer, client: SdClient, tmp_path: Path
) -> None:
    server.is_warm = True
    done = client.generate(APP, {**FOX, "num_images": 2})
    paths = client.save(done, tmp_path / "new", "fox")
    assert [path.name for path in paths] == ["fox-1.png", "fox-2.png"]
    assert [path.read_bytes() for path in paths] == [picture(7), picture(8)]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["fox-1.png", "fox-2.png"]


def test_a_disk_that_refuses_leaves_nothing_behind(
    server: FakeServer, client: SdClient, tmp_path: Path
) -> None:
    server.is_warm = True
    done = client.generate(APP, FOX)
    (tmp_path / f"{done.id}.png").mkdir()  # the name is taken by a folder
    with pytest.raises(NotSavedError, match="choose another folder"):
        client.save(done, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{done.id}.png"]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_key_is_sent_with_every_request(
    server: FakeServer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SD_API_KEY", "sd_env_secret")
    with made_client(kind, server.url) as client:
        client.generate(APP, FOX)
    assert set(server.keys_sent) == {"Bearer sd_env_secret"}
    server.keys_sent.clear()
    with made_client(kind, server.url, api_key="sd_mine_secret") as client:
        list(client.stream(client.submit(APP, FOX).id))
    assert set(server.keys_sent) == {"Bearer sd_mine_secret"}


def test_another_kind_of_server_is_named_as_such(server: FakeServer, client: SdClient) -> None:
    server.refusals = [PlainTextResponse("<html>welcome</html>", 200)]
    with pytest.raises(UnexpectedAnswerError, match="not one of an sdserve server"):
        client.models()


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "", "http://", "http://[::1"])
def test_an_address_that_is_no_http_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidUrlError, match="is not the address of a server"):
        SdClient(url)


def test_follow_writes_one_line_a_phase_into_a_log(server: FakeServer, client: SdClient) -> None:
    server.seconds = 0.6
    out = io.StringIO()
    job = client.submit(APP, FOX)
    assert follow(client, job.id, out).status is JobStatus.SUCCEEDED
    assert out.getvalue().splitlines()[-1] == "succeeded"
    assert "reading file 43%" in out.getvalue()


def test_follow_draws_a_bar_on_a_terminal(server: FakeServer, client: SdClient) -> None:
    server.seconds = 0.9
    out = Terminal()
    job = client.submit(APP, FOX)
    follow(client, job.id, out)
    assert "reading file 43%" in out.getvalue()
    assert "43%" in out.getvalue()
    assert "100%" in out.getvalue().splitlines()[-1]


def test_follow_returns_a_failed_job(server: FakeServer, client: SdClient) -> None:
    server.failing_prompts = {"a fox"}
    job = client.submit(APP, FOX)
    failed = follow(client, job.id, io.StringIO())
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.error.message == "The model said no."
