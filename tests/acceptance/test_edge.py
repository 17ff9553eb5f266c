"""What the HTTP edge keeps to through HAProxy: hang-ups, kills, changes of the routes."""

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
import pytest

from tests.acceptance.conftest import Stack
from tests.acceptance.held_request import LONG, begin, hang_up_frees_the_slot, retry
from tests.acceptance.server import LIMIT, Server
from tests.event_client import EventClient

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

APP = "sd-tiny-shapes-sd15"
GATEWAY = "ray::ServeReplica:gateway:Gateway"


@pytest.fixture(scope="module")
def server(stack: Stack, server: Server) -> Iterator[Server]:
    """With a warm app, which is gone afterwards."""
    done = stack.deploy_sd(stack.add_model("tiny-shapes-sd15").name, "--idle-timeout", "600")
    assert done.returncode == 0, done.stderr
    server.warm(APP)
    yield server
    assert stack.deploy_sd("--delete", APP).returncode == 0


def test_haproxy_takes_the_requests_and_only_from_this_machine(
    stack: Stack, server: Server
) -> None:
    assert "proxy: HAProxy" in stack.stack("status").stdout.splitlines()
    listening = {
        (process.name(), connection.laddr.ip)
        for process in stack.processes.named("haproxy")
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {("haproxy", "127.0.0.1")}
    port = int(server.url.rpartition(":")[2])
    behind = {
        connection.raddr.port
        for process in stack.processes.named("haproxy")
        for connection in process.net_connections(kind="tcp")
        if connection.raddr and connection.laddr.port != port
    }
    everywhere = set()
    for process in stack.processes.all():
        with suppress(psutil.NoSuchProcess):  # it has just ended
            everywhere |= {
                connection.laddr.port
                for connection in process.net_connections(kind="tcp")
                if connection.status == psutil.CONN_LISTEN and connection.laddr.ip != "127.0.0.1"
            }
    assert behind  # the processes of the gateway, which take requests without HAProxy too
    assert not behind & everywhere


def test_a_hang_up_frees_the_slot_unless_the_client_can_come_back(server: Server) -> None:
    hang_up_frees_the_slot(server, APP)


@pytest.mark.parametrize("victim", [GATEWAY, "ray::HAProxyManager", "haproxy"])
def test_a_kill_between_acceptance_and_answer_leaves_one_job(
    stack: Stack, server: Server, victim: str
) -> None:
    server.warm(APP)
    key = {"Idempotency-Key": f"killed {victim}"}
    with begin(server, APP, **key):
        before = datetime.now(UTC)
        for process in stack.processes.named(victim):  # of the gateway's any may hold the request
            process.kill()
            process.wait(LIMIT)
        job = server.finished(retry(server, APP, **key))
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    assert datetime.fromisoformat(job["created_at"]) < before


def test_while_haproxy_comes_back_no_job_is_unknown(stack: Stack, server: Server) -> None:
    job_id = server.finished(server.submit(APP, prompt="anything"))["id"]
    (process,) = stack.processes.named("haproxy")
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


def test_one_process_of_the_gateway_dies_and_the_other_answers(
    stack: Stack, server: Server
) -> None:
    processes = stack.processes.named(GATEWAY)
    assert len(processes) == 2
    processes[0].kill()
    processes[0].wait(LIMIT)
    answered = lost = 0
    deadline = time.monotonic() + LIMIT
    with httpx.Client(base_url=server.url, trust_env=False, timeout=LIMIT) as http:
        while len(stack.processes.named(GATEWAY)) < 2 or answered < 100:
            assert time.monotonic() < deadline
            try:
                answered += http.get(f"/{APP}/v1/health").status_code == 200
            except httpx.TransportError:
                lost += 1  # what it was about to answer when it was killed
    assert lost <= 1
    assert processes[1].is_running()


def test_what_happens_to_one_app_touches_no_process_and_no_request_of_another(
    stack: Stack, server: Server
) -> None:
    before = {process.pid for process in stack.processes.named(GATEWAY)}
    job_id = server.generate(APP, **LONG, headers={"Prefer": "respond-async"}).json()["id"]
    model = stack.models / "tiny-shapes-sd15.safetensors"
    other = Path(shutil.copy(model, model.with_name("late-comer.safetensors")))
    with EventClient(server.url, job_id) as stream, ThreadPoolExecutor(8) as pool:
        held = [pool.submit(server.finished, job_id) for _ in range(8)]
        for options in ((), ("--queue-limit", "7")):
            assert stack.deploy_sd(other.name, *options).returncode == 0
            # On a connection from before the deployment too.
            told = server.get("/sd-late-comer/v1/models").json()["data"][0]
        assert told["limits"]["queue"] == 7
        assert stack.deploy_sd("--delete", "sd-late-comer").returncode == 0
        assert server.get("/sd-late-comer/v1/health").status_code == 404
        jobs = [each.result() for each in held]
        events = [event.data for event in stream if event.kind == "job"]
    assert {(job["status"], job["attempt"]) for job in jobs} == {("succeeded", 1)}, jobs[0]["error"]
    assert events[-1]["status"] == "succeeded"
    assert {process.pid for process in stack.processes.named(GATEWAY)} == before
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
