"""The Ray cluster: the one of RAY_ADDRESS, or a local one of ours.

A local one is started when needed, found again by later commands, and stopped by its own pid.
It starts with HAProxy in front where that can run, else with Serve's own proxy.
"""

import logging
import os
import shutil
import socket
import sys
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve._private.build_app import build_app
from ray.serve.config import HTTPOptions
from ray.serve.context import (
    _get_global_client,  # pyright: ignore[reportPrivateUsage] (there is no other way to it)
)
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ServeStatus
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deploy_scripts import haproxy
from deploy_scripts.proxy_choice import ProxyChoice
from sdserve.daemon import Daemon
from sdserve.errors import DeployError
from sdserve.loopback import is_loopback
from sdserve.settings import Proxy, Settings
from workers.standby import ensure_standby

OBJECT_STORE_BYTES = 200_000_000  # nothing large travels through Ray
START_PATIENCE = 120.0  # seconds
STOP_PATIENCE = 30.0  # seconds
NAMESPACE = "sdserve"

# Ray 2.60 turns token authentication on by itself when ~/.ray/auth_token exists, but only in
# `ray start`, not in `ray.init`: say it everywhere or the two do not find each other.
RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled"),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # keep CUDA_VISIBLE_DEVICES of CPU processes
    # Ray starts its workers with 15, those for HTTP too: replicas give way (workers/priority.py).
    "RAY_worker_niceness": "0",
    "HF_HUB_OFFLINE": "1",
    # A node that is told to stop waits so long for its processes; ours leave within 2 s, Serve's
    # own never do. A job that runs longer is taken up again by its lease.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": os.environ.get(
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "5"
    ),
}


def connect(settings: Settings) -> None:
    """Connect this process to the cluster, starting a local one if there is none.

    Raises:
        DeployError: no cluster answers at RAY_ADDRESS, or the local one does not start.
    """
    if ray.is_initialized():
        return
    os.environ.update(RAY_ENVIRONMENT)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # our commands say what they do
    address = settings.ray_address or find_local(settings)
    _connect(address or start_local(settings, ProxyChoice.make(settings)))


def _connect(address: str) -> None:
    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        message = f"No Ray cluster answers at {address}: check RAY_ADDRESS and that it runs."
        raise DeployError(message) from error


def is_running(settings: Settings) -> bool:
    """Whether `connect` would find a cluster rather than start one."""
    return bool(settings.ray_address or find_local(settings))


def find_local(settings: Settings) -> str | None:
    """The address of the local cluster that an earlier command started, if it still runs."""
    if Daemon.find(_record(settings)) is None:
        return None
    address = _address_file(settings).read_text()
    host, port = address.rsplit(":", 1)
    return address if _answers(host, int(port)) else None


def start_local(settings: Settings, choice: ProxyChoice) -> str:
    """Start a head node on loopback with ports and folders of its own.

    Returns:
        its address.

    Raises:
        DeployError: it does not come up; the message names its log.
    """
    stop_local(settings)
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    log = settings.state_dir / "ray.log"
    ports = _free_ports(9)
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block",
        "--node-ip-address=127.0.0.1",
        f"--port={ports[0]}",
        f"--ray-client-server-port={ports[1]}",
        f"--dashboard-agent-listen-port={ports[2]}",
        f"--dashboard-agent-grpc-port={ports[3]}",
        f"--runtime-env-agent-port={ports[4]}",
        f"--metrics-export-port={ports[5]}",
        f"--node-manager-port={ports[6]}",
        f"--object-manager-port={ports[7]}",
        "--min-worker-port=0", "--max-worker-port=0",
        "--include-dashboard=false",
        "--disable-usage-stats",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={_temp_dir(settings)}",
    ]  # fmt: skip
    choice.save(_choice_file(settings))
    environment = {**os.environ, **node_environment(settings, choice)}
    environment["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"] = str(ports[8])  # stands by behind HAProxy
    environment.pop("RAY_ADDRESS", None)
    daemon = Daemon.start(command, record=_record(settings), log=log, environment=environment)
    address = f"127.0.0.1:{ports[0]}"
    _address_file(settings).write_text(address)
    deadline = time.monotonic() + START_PATIENCE
    while not _answers("127.0.0.1", ports[0]):
        if not daemon.is_running or time.monotonic() > deadline:
            daemon.stop(patience=STOP_PATIENCE)
            message = f"The local Ray cluster does not start: its last words are in {log}."
            raise DeployError(message)
        time.sleep(0.2)
    return address


def stop_local(settings: Settings) -> bool:
    """Stop the local cluster with all that runs on it. False: none ran."""
    daemon = Daemon.find(_record(settings))
    if daemon is not None:
        daemon.stop(patience=STOP_PATIENCE)
    _record(settings).unlink(missing_ok=True)
    _choice_file(settings).unlink(missing_ok=True)
    shutil.rmtree(_temp_dir(settings), ignore_errors=True)
    haproxy.clean_up(settings.state_dir / "haproxy")
    return daemon is not None


def node_environment(settings: Settings, choice: ProxyChoice) -> dict[str, str]:
    """What the `ray start` of every node of a cluster must see."""
    if choice.proxy is Proxy.SERVE:
        return RAY_ENVIRONMENT
    return RAY_ENVIRONMENT | haproxy.prepare(settings.state_dir / "haproxy")


def proxy_choice(settings: Settings) -> ProxyChoice | None:
    """The proxy that the local cluster was started with; None: there is no local cluster."""
    return None if settings.ray_address else ProxyChoice.load(_choice_file(settings))


def start_serve(settings: Settings) -> None:
    """Start Serve and its HTTP proxy unless it runs.

    A local cluster whose HAProxy does not come up is started again with Serve's own proxy.

    Raises:
        DeployError: the port is taken; no proxy comes up; another one than asked for runs.
    """
    if not serve_runs() and _answers(settings.http_host, settings.http_port):
        message = (
            f"Port {settings.http_port} on {settings.http_host} is taken by another program: "
            "choose another with SD_HTTP_PORT."
        )
        raise DeployError(message)
    try:
        _start_serve(settings)
    except (RayError, TimeoutError) as error:
        choice = proxy_choice(settings)
        if choice is None or choice.proxy is Proxy.SERVE:
            message = f"Serve's HTTP proxy does not come up: {_last_line(error)}"
            raise DeployError(message) from error
        reason = f"HAProxy does not come up: {_last_line(error)}"
        if settings.proxy is Proxy.HAPROXY:
            raise DeployError(f"{reason}. Mend that, or leave SD_PROXY out.") from error
        ray.shutdown()
        serves_own = ProxyChoice(proxy=Proxy.SERVE, reason=reason)
        _connect(start_local(settings, serves_own))
        _start_serve(settings)
    if settings.proxy is not Proxy.AUTO and (runs := running_proxy()) is not settings.proxy:
        message = (
            f"SD_PROXY={settings.proxy}, but the Ray cluster runs with the proxy '{runs}': stop it "
            "(make down) and start it again."
        )
        raise DeployError(message)


def running_proxy() -> Proxy:
    """That of the connected cluster: beside HAProxy, Serve's own stands by under another name."""
    actors: Any = list_named_actors(all_namespaces=True)  # dicts, as all namespaces are asked for
    stands_by = any(one["name"].startswith("SERVE_PROXY_ACTOR-fallback-") for one in actors)
    return Proxy.HAPROXY if stands_by else Proxy.SERVE


def _start_serve(settings: Settings) -> None:
    serve.start(
        proxy_location="EveryNode",
        http_options=HTTPOptions(host=settings.http_host, port=settings.http_port),
    )


def run_without_http(application: serve.Application, name: str) -> None:
    """`serve.run` of an application that answers no requests; returns when it runs.

    Serve takes the outermost deployment for its application's ingress. Behind HAProxy each replica
    of an ingress opens an HTTP port of its own, and waits for requests before it may end, so this
    application has none: what `serve.run` does (Ray 2.60, serve.api._run_many), but for that.

    Raises:
        RuntimeError: Serve cannot deploy it.
    """
    built: Any = build_app(
        application, name=name, default_runtime_env=ray.get_runtime_context().runtime_env
    )
    client: Any = _get_global_client()
    client.deploy_applications(
        [replace(built, ingress_deployment_name="")], wait_for_ingress_deployment_creation=False
    )


def start_standbys() -> None:
    """Have every node import the libraries ahead of its first replica; does not wait for it."""
    for node in ray.nodes():
        if node["Alive"]:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            _ensure_standby.options(scheduling_strategy=here).remote()


@ray.remote(num_cpus=0, max_retries=0)
def _ensure_standby() -> None:
    ensure_standby()


def serve_status() -> ServeStatus:
    """What Serve says of itself; of a cluster without it: nothing.

    Raises:
        DeployError: its controller does not answer, or in words of another version of Ray.
    """
    try:
        return serve.status()
    except (RayError, RayServeException, AttributeError, TypeError, ValueError) as error:
        message = (
            f"Serve does not tell what runs ({_last_line(error)}): if Ray or this package was "
            "changed under the running stack, stop it (make down) and start it again (make up)."
        )
        raise DeployError(message) from error


def serve_runs() -> bool:
    """Whether Serve's proxy runs in the connected cluster."""
    return bool(serve_status().proxies)


def refuse_unreachable_redis(redis_url: str) -> None:
    """A Redis on loopback serves one node only.

    Raises:
        DeployError: the cluster has more.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    host = urlsplit(redis_url).hostname or "localhost"
    if len(nodes) > 1 and is_loopback(host):
        message = (
            f"The Ray cluster has {len(nodes)} nodes, but Redis listens on {host} only: "
            "set REDIS_URL to a Redis that every node can reach."
        )
        raise DeployError(message)


def _record(settings: Settings) -> Path:
    return settings.state_dir / "ray.json"


def _choice_file(settings: Settings) -> Path:
    return settings.state_dir / "ray.proxy"


def _last_line(error: Exception) -> str:
    """What it was, of an error that Ray has wrapped in a traceback."""
    return str(error).strip().rpartition("\n")[2]


def _address_file(settings: Settings) -> Path:
    return settings.state_dir / "ray.address"


def _temp_dir(settings: Settings) -> Path:
    # Ray puts unix sockets there, whose paths may have 107 characters: a short one of our own.
    name = sha256(str(settings.state_dir.resolve()).encode()).hexdigest()[:8]
    return Path(f"/tmp/sdserve-{os.getuid()}-{name}")  # noqa: S108


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on right now; all are held open until all are known."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
