"""What the HTTP edge keeps to through HAProxy: hang-ups, kills, changes of the routes."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import psutil
import pytest

from tests.acceptance.conftest import Stack
from tests.acceptance.held_request import begin, hang_up_frees_the_slot, retry
from tests.acceptance.server import LIMIT, Server

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

APP = "sd-tiny-shapes-sd15"


@pytest.fixture(scope="module")
def server(stack: Stack, server: Server) -> Iterator[Server]:
    """With a warm app, which is gone afterwards."""
    done = stack.deploy_sd(stack.add_model("tiny-shapes-sd15").name, "--idle-timeout", "600")
    assert done.returncode == 0, done.stderr
    server.warm(APP)
    yield server
    assert stack.deploy_sd("--delete", APP).returncode == 0


def victims(stack: Stack, title: str) -> list[psutil.Process]:
    return [one for one in stack.processes() if title in (one.name(), *one.cmdline()[:1])]


def test_haproxy_takes_the_requests_and_only_from_this_machine(
    stack: Stack, server: Server
) -> None:
    assert "proxy: HAProxy" in stack.stack("status").stdout.splitlines()
    listening = {
        (process.name(), connection.laddr.ip)
        for process in victims(stack, "haproxy")
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {("haproxy", "127.0.0.1")}
    port = int(server.url.rpartition(":")[2])
    behind = {
        connection.raddr.port
        for process in victims(stack, "haproxy")
        for connection in process.net_connections(kind="tcp")
        if connection.raddr and connection.laddr.port != port
    }
    everywhere = {
        connection.laddr.port
        for process in stack.processes()
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.ip != "127.0.0.1"
    }
    assert behind  # the processes of the apps, which take requests without HAProxy too
    assert not behind & everywhere


def test_a_hang_up_frees_the_slot_unless_the_client_can_come_back(server: Server) -> None:
    hang_up_frees_the_slot(server, APP)


@pytest.mark.parametrize(
    "victim", [f"ray::ServeReplica:{APP}:Ingress", "ray::HAProxyManager", "haproxy"]
)
def test_a_kill_between_acceptance_and_answer_leaves_one_job(
    stack: Stack, server: Server, victim: str
) -> None:
    server.warm(APP)
    key = {"Idempotency-Key": f"killed {victim}"}
    with begin(server, APP, **key):
        before = datetime.now(UTC)
        (process,) = victims(stack, victim)
        process.kill()
        process.wait(LIMIT)
        job = server.finished(retry(server, APP, **key))
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    assert datetime.fromisoformat(job["created_at"]) < before


def test_while_haproxy_comes_back_no_job_is_unknown(stack: Stack, server: Server) -> None:
    job_id = server.finished(server.submit(APP, prompt="anything"))["id"]
    (process,) = victims(stack, "haproxy")
    process.kill()
    process.wait(LIMIT)
    problems = set[str]()
    deadline = time.monotonic() + LIMIT
    while True:
        assert time.monotonic() < deadline
        try:
            answer = httpx.get(f"{server.url}/v1/jobs/{job_id}", trust_env=False)
        except httpx.TransportError:
            continue
        if answer.status_code == 200:
            break
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert int(answer.headers["Retry-After"]) > 0
        problem = json.loads(answer.content)
        assert problem["status"] == answer.status_code
        problems.add(problem["type"])
    # It starts without the routes: Ray tells it those half a second later.
    assert problems == {"urn:sdserve:problem:server_starting"}


def test_a_connection_from_before_a_deployment_knows_the_new_app(
    stack: Stack, server: Server
) -> None:
    assert server.get("/v1/health").status_code == 200  # leaves a connection open
    other = stack.add_model("tiny-shapes-sd15").with_name("late-comer.safetensors")
    other.write_bytes((stack.models / "tiny-shapes-sd15.safetensors").read_bytes())
    assert stack.deploy_sd(other.name).returncode == 0
    try:
        assert server.get("/sd-late-comer/v1/health").status_code == 200
    finally:
        start = time.monotonic()
        assert stack.deploy_sd("--delete", "sd-late-comer").returncode == 0
    # Its ingress drains for some seconds, which nobody waits for.
    assert server.get("/sd-late-comer/v1/health").status_code == 404
    assert time.monotonic() - start < 30
    other.unlink()


def test_another_proxy_is_refused_while_one_runs(
    stack: Stack, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stack.environment, "SD_PROXY", "serve")
    done = stack.stack("up")
    assert done.returncode == 1
    assert "make down" in done.stderr
    assert server.get("/v1/health").status_code == 200


def test_a_later_command_cannot_believe_that_keys_are_asked_for(
    stack: Stack, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stack.environment, "SD_AUTH", "on")
    done = stack.deploy_sd(str(stack.models / "tiny-shapes-sd15.safetensors"))
    assert done.returncode == 1
    assert "without API keys" in done.stderr
    assert "make down" in done.stderr
    assert server.get("/v1/jobs").status_code == 200  # as before
