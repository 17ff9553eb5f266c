"""Where HAProxy does not come up, Serve's own proxy takes the requests: a stack of its own."""

from collections.abc import Iterator

import pytest

from tests.acceptance.conftest import Stack
from tests.acceptance.held_request import begin, hang_up_frees_the_slot, retry
from tests.acceptance.server import LIMIT, Server
from tests.event_client import EventClient

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

APP = "sd-tiny-shapes-sd15"
TOLD = "proxy: Serve's own (HAProxy does not come up: "


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Its HAProxy tells its version and cannot start."""
    folder = tmp_path_factory.mktemp("serve-proxy")
    one = Stack(folder)
    broken = folder / "haproxy"
    broken.write_text("#!/bin/sh\n[ \"$1\" = -v ] || { echo 'out of order' >&2; exit 3; }\n")
    broken.chmod(0o700)
    one.environment["RAY_SERVE_HAPROXY_BINARY_PATH"] = str(broken)
    try:
        started = one.stack("up")
        assert started.returncode == 0, started.stderr
        assert TOLD in started.stdout
        done = one.deploy_sd(one.add_model("tiny-shapes-sd15").name, "--idle-timeout", "600")
        assert done.returncode == 0, done.stderr
        yield one
    finally:
        stopped = one.stack("down")
    assert stopped.returncode == 0, stopped.stderr


@pytest.fixture(scope="module")
def server(stack: Stack) -> Iterator[Server]:
    with Server(stack.url) as one:
        yield one


def test_a_cold_job_is_seen_step_by_step(server: Server) -> None:
    job_id = server.submit(APP, prompt="a red circle", num_inference_steps=150, num_images=2)
    with EventClient(server.url, job_id) as stream:
        events = [event.data for event in stream if event.kind == "job"]
    assert events[0]["phase"] == "starting a process"
    steps = [event["progress"]["step"] for event in events if event["status"] == "running"]
    assert len(steps) >= 5  # told one by one, where they take a fifth of a second
    assert steps == sorted(steps)
    assert events[-1]["status"] == "succeeded"


def test_a_hang_up_frees_the_slot_unless_the_client_can_come_back(server: Server) -> None:
    hang_up_frees_the_slot(server, APP)


def test_a_kill_of_the_proxy_leaves_one_job(stack: Stack, server: Server) -> None:
    server.warm(APP)
    key = {"Idempotency-Key": "killed"}
    with begin(server, APP, **key):
        (process,) = stack.processes.named("ray::ProxyActor")
        process.kill()
        process.wait(LIMIT)
        job = server.finished(retry(server, APP, **key))
    assert (job["status"], job["attempt"]) == ("succeeded", 1)


def test_the_reason_is_told_as_long_as_it_runs(stack: Stack) -> None:
    assert "out of order" in stack.stack("status").stdout
