"""A job's events through the HTTP proxy: as they happen, and again after a lost connection."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.conftest import Stack
from tests.acceptance.server import Server
from tests.event_client import EventClient

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

APP = "sd-tiny-shapes-sd15"
LONG: dict[str, Any] = {
    "prompt": "a red circle on a blue background",
    "num_inference_steps": 150,
    "num_images": 2,
}


@pytest.fixture(scope="module")
def server(stack: Stack, server: Server) -> Iterator[Server]:
    """With an app, which is gone afterwards."""
    done = stack.deploy_sd(stack.add_model("tiny-shapes-sd15").name, "--idle-timeout", "600")
    assert done.returncode == 0, done.stderr
    yield server
    assert stack.deploy_sd("--delete", APP).returncode == 0


def test_a_cold_start_is_seen_as_it_happens(server: Server) -> None:
    job_id = server.submit(APP, **LONG)
    with EventClient(server.url, job_id) as stream:
        events = [event.data for event in stream if event.kind == "job"]
    phases = [event["phase"] for event in events]
    assert phases[0] == "starting a process"
    # How it loads is told too, as far as it takes longer than the quarter second between two looks.
    assert phases.index("starting") > 0, phases
    steps = [event["progress"]["step"] for event in events if event["status"] == "running"]
    assert len(steps) >= 5  # told one by one, where they take a fifth of a second
    assert steps == sorted(steps)
    assert events[-1]["status"] == "succeeded"


def test_nothing_is_held_back_until_the_end(server: Server) -> None:
    job_id = server.submit(APP, **LONG)
    with EventClient(f"{server.url}/{APP}", job_id, previews=True) as stream:
        while (event := stream.job()).data["progress"]["step"] == 0:
            pass
        seen = time.monotonic()
        assert stream.next("preview").data["image"].startswith("data:image/webp;base64,")
        while not (event := stream.job()).data["finished_at"]:
            pass
        assert time.monotonic() - seen > 0.3
    assert event.data["status"] == "succeeded"


def test_who_loses_the_connection_goes_on_where_he_was(server: Server) -> None:
    job_id = server.submit(APP, **LONG)
    steps, last, status = list[int](), None, ""
    while status != "succeeded":
        with EventClient(server.url, job_id, last=last) as stream:
            event = stream.job()
        assert event.data["status"] in ("queued", "running", "succeeded"), event
        steps.append(event.data["progress"]["step"])
        last, status = event.id, event.data["status"]
    assert steps == sorted(steps)
    assert len(set(steps)) >= 3
