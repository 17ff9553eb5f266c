"""The gates of `make bench-smoke` can fail: each property, broken on purpose, is found."""

import base64
import threading
from collections.abc import Callable
from typing import Any

import pytest

import api.codec
import workers.finisher
from api.edge import Edge
from bench.smoke import GATES, Found, smoke
from sdserve.async_store import AsyncJobStore
from sdserve.generation import EncodedImage
from sdserve.operations import Seen
from workers.puller import Puller

pytestmark = pytest.mark.integration

Sabotage = Callable[[pytest.MonkeyPatch], None]


def one_more_look(patch: pytest.MonkeyPatch) -> None:
    look = Edge.look

    async def look_twice(self: Edge, job_id: str) -> Seen:
        await look(self, job_id)
        return await look(self, job_id)

    patch.setattr(Edge, "look", look_twice)


def one_more_look_at_the_end(patch: pytest.MonkeyPatch) -> None:
    look = AsyncJobStore.look_at_end

    async def look_twice(self: AsyncJobStore, job_id: str) -> Seen:
        await look(self, job_id)
        return await look(self, job_id)

    patch.setattr(AsyncJobStore, "look_at_end", look_twice)


def base64_twice(patch: pytest.MonkeyPatch) -> None:
    uri = api.codec.data_uri

    def encode_twice(image: EncodedImage) -> str:
        base64.b64encode(image.data)
        return uri(image)

    patch.setattr("api.schemas.data_uri", encode_twice)


def one_more_thread(patch: pytest.MonkeyPatch) -> None:
    start = Puller.__init__

    def start_with_another(self: Puller, *arguments: Any, **options: Any) -> None:
        threading.Thread(target=threading.Event().wait, name="idle", daemon=True).start()
        start(self, *arguments, **options)

    patch.setattr(Puller, "__init__", start_with_another)


def copies_of_pictures(patch: pytest.MonkeyPatch) -> None:
    uri = api.codec.data_uri
    kept = list[bytearray]()

    def keep_copies(image: EncodedImage) -> str:
        kept.extend(bytearray(image.data) for _ in range(6))
        return uri(image)

    patch.setattr("api.schemas.data_uri", keep_copies)


def encoding_in_the_engine(patch: pytest.MonkeyPatch) -> None:
    """The end of a job is waited for by the thread that draws the next one."""
    succeed = workers.finisher.Finisher.succeed

    def succeed_and_wait(self: Any, run: Any) -> None:
        succeed(self, run)
        self._thread.submit(int).result()

    patch.setattr(workers.finisher.Finisher, "succeed", succeed_and_wait)


@pytest.mark.parametrize(
    ("sabotage", "gate"),
    [
        (one_more_look_at_the_end, "round trips of a warm request"),
        (one_more_look, "round trips of a poll, queued"),
        (base64_twice, "base64 encodings of a warm request"),
        (one_more_thread, "threads of a replica"),
        (copies_of_pictures, "pictures' sizes of memory for one answer"),
        (encoding_in_the_engine, "saturated / the engine's own rate"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_broken_property_breaks_its_gate(
    monkeypatch: pytest.MonkeyPatch, sabotage: Sabotage, gate: str
) -> None:
    sabotage(monkeypatch)
    with smoke() as one:
        found = one.run(only=gate)
    assert [each.name for each in found] == [gate]
    assert not found[0].is_met, found


@pytest.mark.parametrize("gate", GATES)
def test_the_counts_are_those_of_the_gates(gate: str) -> None:
    with smoke() as one:
        (found,) = one.run(only=gate)
    assert isinstance(found, Found)
    assert found.is_met, found
