"""Both clients against the real server: its HTTP, its Redis, a replica that draws."""

import asyncio
import json
import zipfile
from collections.abc import Iterator
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path

import pytest
from redis import Redis

from api import gateway
from sdserve.api_keys import Token
from sdserve.batches import BatchState, LineStatus
from sdserve.client import ApiError, AsyncSdClient, JobView, SdClient
from sdserve.jobs import JobStatus
from sdserve.store import RedisJobStore
from tests.http_app import HttpApp, edge_settings
from tests.keys import create_key
from tests.rq_worker import working
from tests.served_replica import Gate, warm_replica
from tests.values import APP
from tests.waiting import until
from workers.task_queue import QueueName

pytestmark = pytest.mark.integration

CIRCLE = {"prompt": "a red circle", "num_inference_steps": 3, "width": 64, "height": 64}


@pytest.fixture
def gate(redis: Redis, redis_url: str, tmp_path: Path) -> Iterator[Gate]:
    with warm_replica(redis, redis_url, tmp_path) as gate:
        yield gate


@pytest.fixture
def url(redis_url: str, gate: Gate) -> Iterator[str]:
    with HttpApp(gateway.create_app(edge_settings(redis_url, is_key_required=True))) as app:
        yield f"http://127.0.0.1:{app.port}"


@pytest.fixture
def token(redis: Redis) -> Token:
    return create_key(RedisJobStore(redis), "ann")


def test_a_job_from_its_request_to_its_files(url: str, token: Token, tmp_path: Path) -> None:
    with SdClient(url, api_key=token.text) as client:
        done = client.generate(APP, {**CIRCLE, "num_images": 2, "seed": 7})
        assert done.status is JobStatus.SUCCEEDED
        assert done.parameters["seed"] == 7
        paths = client.save(done, tmp_path / "out", "circle")
        assert [path.name for path in paths] == ["circle-1.png", "circle-2.png"]
        # Downloaded one by one, they are the same bytes.
        again = client.pictures(client.job(done.id))
        assert [path.read_bytes() for path in paths] == [picture.data for picture in again]
        assert client.image(done.id, 1).data == paths[1].read_bytes()
        assert [model["id"] for model in client.models()] == [APP]


async def test_a_stream_follows_a_job_to_its_end(url: str, token: Token, gate: Gate) -> None:
    gate.shut()  # the job waits in its last step
    async with AsyncSdClient(url, api_key=token.text) as client:
        job = await client.submit(APP, CIRCLE, prefer="respond-async")
        seen: list[JobView] = []
        async with asyncio.timeout(60), aclosing(client.stream(job.id)) as events:
            async for event in events:
                seen.append(event.job)
                if event.job.status is JobStatus.RUNNING:
                    gate.open()
        assert seen[-1].status is JobStatus.SUCCEEDED
        assert JobStatus.RUNNING in [job.status for job in seen]
        assert len(await client.pictures(seen[-1])) == 1  # events bring none: they are fetched


def test_a_running_job_is_cancelled_and_waited_for(url: str, token: Token, gate: Gate) -> None:
    gate.shut()
    with SdClient(url, api_key=token.text) as client:
        job = client.submit(APP, {**CIRCLE, "num_inference_steps": 50}, prefer="respond-async")
        client.cancel(job.id)
        gate.open()
        ended = client.wait(job.id, at_most=timedelta(seconds=60))
        assert ended.status is JobStatus.CANCELLED


def test_without_its_key_a_job_does_not_exist(url: str, token: Token, redis: Redis) -> None:
    with SdClient(url, api_key=token.text) as client:
        job = client.generate(APP, CIRCLE)
    other = create_key(RedisJobStore(redis), "bob")
    for api_key, status in ((other.text, 404), (None, 401)):
        with (
            SdClient(url, api_key=api_key, patience=timedelta()) as client,
            pytest.raises(ApiError) as caught,
        ):
            client.job(job.id)
        assert caught.value.status == status


def test_a_batch_from_its_lines_to_its_zip(
    url: str, token: Token, redis_url: str, tmp_path: Path
) -> None:
    lines = [
        {"prompt": "a red circle", "custom_id": "first"},
        {"prompt": "two", "num_images": 2},
        {"prompt": "a third", "seed": 9},
    ]
    defaults = {"num_inference_steps": 3, "width": 64, "height": 64}
    with working(redis_url, queue=QueueName.BATCHES), SdClient(url, api_key=token.text) as client:
        made = client.create_batch(lines, app=APP, defaults=defaults, idempotency_key="k")
        assert (made.lines, made.apps) == (3, {APP: 3})
        again = client.create_batch(lines, app=APP, defaults=defaults, idempotency_key="k")
        assert again.id == made.id
        until(lambda: client.batch(made.id).status is BatchState.COMPLETED)
        ended = client.batch(made.id)
        assert (ended.counts.succeeded, ended.counts.waiting, ended.counts.active) == (3, 0, 0)
        results = list(client.batch_results(made.id))
        assert [(line.line, line.status) for line in results] == [
            (number, LineStatus.SUCCEEDED) for number in (1, 2, 3)
        ]
        assert (results[0].custom_id, results[2].seed) == ("first", 9)
        assert [line.line for line in client.batch_results(made.id, after=2)] == [3]
        # The job of a line is one like any other.
        job_id = results[1].job_id
        assert job_id is not None
        pictures = client.pictures(client.job(job_id))
        with zipfile.ZipFile(client.download_batch(made.id, tmp_path / "all.zip")) as file:
            told = [json.loads(line) for line in file.read("results.jsonl").splitlines()]
            kept = [file.read(name) for name in told[1]["files"]]
        assert kept == [picture.data for picture in pictures]
        with pytest.raises(ApiError) as caught:
            client.cancel_batch(made.id)
        assert caught.value.status == 409


async def test_a_batch_is_taken_whole_or_not_and_is_cancelled(url: str, token: Token) -> None:
    async with AsyncSdClient(url, api_key=token.text) as client:
        with pytest.raises(ApiError, match="line 2: prompt") as caught:
            await client.create_batch([CIRCLE, {"prompt": ""}], app=APP)
        assert [(fault.line, fault.field) for fault in caught.value.faults] == [(2, "prompt")]
        made = await client.create_batch([CIRCLE] * 2, app=APP)  # nobody feeds it
        assert made.status is BatchState.ACCEPTED
        ended = await client.cancel_batch(made.id)
        assert (ended.status, ended.counts.cancelled) == (BatchState.CANCELLED, 2)
        lines = [line async for line in client.batch_results(made.id)]
        assert [(line.status, line.job_id) for line in lines] == [(LineStatus.CANCELLED, None)] * 2


def test_a_batch_is_its_owners(url: str, token: Token, redis: Redis) -> None:
    with SdClient(url, api_key=token.text) as client:
        made = client.create_batch([CIRCLE], app=APP)
    other = create_key(RedisJobStore(redis), "bob")
    with (
        SdClient(url, api_key=other.text, patience=timedelta()) as client,
        pytest.raises(ApiError) as caught,
    ):
        client.batch(made.id)
    assert caught.value.status == 404
