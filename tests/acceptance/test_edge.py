"""What the HTTP edge keeps to through Serve's own proxy: hang-ups, and kills between the two."""

import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from tests.acceptance.conftest import Stack
from tests.acceptance.server import LIMIT, Server

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

APP = "sd-tiny-shapes-sd15"
LONG: dict[str, Any] = {"prompt": "anything", "num_inference_steps": 150, "num_images": 4}


@pytest.fixture(scope="module")
def server(stack: Stack, server: Server) -> Iterator[Server]:
    """With a warm app, which is gone afterwards."""
    done = stack.deploy_sd(stack.add_model("tiny-shapes-sd15").name, "--idle-timeout", "600")
    assert done.returncode == 0, done.stderr
    server.warm(APP)
    yield server
    assert stack.deploy_sd("--delete", APP).returncode == 0


def begin(server: Server, **headers: str) -> socket.socket:
    """A connection on which a long job was asked for, which runs; nothing was read yet."""
    request = httpx.Request("POST", f"{server.url}/{APP}/v1/generate", json=LONG, headers=headers)
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    client = socket.create_connection((request.url.host, request.url.port or 80), LIMIT)
    client.sendall(f"POST {request.url.path} HTTP/1.1\r\n{head}\r\n".encode() + request.content)
    server.until(APP, lambda health: health["running"] == 1)
    return client


def retry(server: Server, **headers: str) -> str:
    """The id of the job, once the server answers again."""
    deadline = time.monotonic() + LIMIT
    while True:
        assert time.monotonic() < deadline
        try:
            answer = server.generate(APP, **LONG, headers=headers)
        except httpx.TransportError:
            time.sleep(0.2)
            continue
        if answer.status_code in (200, 202):
            return answer.headers["X-Job-Id"]
        time.sleep(0.2)


def test_a_hang_up_frees_the_slot_unless_the_client_can_come_back(server: Server) -> None:
    server.warm(APP)
    begin(server, **{"Idempotency-Key": "hung up"}).close()
    job = server.finished(retry(server, **{"Idempotency-Key": "hung up"}))
    assert (job["status"], job["attempt"]) == ("succeeded", 1)

    begin(server).close()
    start = time.monotonic()
    assert server.until(APP, lambda health: health["running"] == 0)["queued"] == 0
    # Not ended by itself.
    assert time.monotonic() - start < job["compute_metrics"]["denoise_seconds"] / 2


@pytest.mark.parametrize("victim", [f"ServeReplica:{APP}:Ingress", "ProxyActor"])
def test_a_kill_between_acceptance_and_answer_leaves_one_job(
    stack: Stack, server: Server, victim: str
) -> None:
    server.warm(APP)
    key = {"Idempotency-Key": f"killed {victim}"}
    with begin(server, **key):
        before = datetime.now(UTC)
        (process,) = [one for one in stack.processes() if one.cmdline()[:1] == [f"ray::{victim}"]]
        process.kill()
        process.wait(LIMIT)
        job = server.finished(retry(server, **key))
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    assert datetime.fromisoformat(job["created_at"]) < before


def test_a_later_command_cannot_believe_that_keys_are_asked_for(
    stack: Stack, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stack.environment, "SD_AUTH", "on")
    done = stack.deploy_sd(str(stack.models / "tiny-shapes-sd15.safetensors"))
    assert done.returncode == 1
    assert "without API keys" in done.stderr
    assert "make down" in done.stderr
    assert server.get("/v1/jobs").status_code == 200  # as before
