"""A job's events through HAProxy, Serve's other way to take requests: a stack of its own."""

import socket
from collections.abc import Iterator

import psutil
import pytest

from tests.acceptance.conftest import Stack
from tests.acceptance.server import Server
from tests.event_client import Event, EventClient

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

APP = "sd-tiny-shapes-sd15"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """With HAProxy, its ports and sockets not those of another stack on this machine."""
    folder = tmp_path_factory.mktemp("haproxy")
    one = Stack(folder)
    with socket.socket() as metrics, socket.socket() as stats:
        for probe in (metrics, stats):
            probe.bind(("127.0.0.1", 0))
        one.environment |= {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics.getsockname()[1]),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats.getsockname()[1]),
        }
    try:
        started = one.stack("up")
        assert started.returncode == 0, started.stderr
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


def test_a_cold_job_is_seen_step_by_step_over_a_lost_connection(server: Server) -> None:
    job_id = server.submit(
        APP,
        prompt="a red circle on a blue background",
        num_inference_steps=150,
        num_images=2,
    )
    events = list[Event]()
    with EventClient(server.url, job_id) as stream:
        # Until two steps of it were seen: then the connection is lost.
        while _steps(events)[1:] == []:
            events.append(stream.job())
            assert events[-1].data["status"] in ("queued", "running"), events[-1]
    assert events[0].data["phase"] == "starting a process"
    with EventClient(server.url, job_id, last=events[-1].id) as stream:
        rest = [event for event in stream if event.kind == "job"]
    assert rest[0].id != events[-1].id  # what was seen is not told again
    steps = _steps([*events, *rest])
    assert len(steps) >= 5  # told one by one, where they take a fifth of a second
    assert steps == sorted(steps)
    assert rest[-1].data["status"] == "succeeded"


def test_only_this_machine_is_served(stack: Stack, server: Server) -> None:
    assert server.get("/v1/health").status_code == 200
    port = int(stack.url.rpartition(":")[2])
    listening = {
        (process.name(), connection.laddr.ip)
        for process in stack.processes()
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    }
    assert listening == {("haproxy", "127.0.0.1")}


def _steps(events: list[Event]) -> list[int]:
    """Those of the running job, as they were told."""
    return [event.data["progress"]["step"] for event in events if event.data["status"] == "running"]
