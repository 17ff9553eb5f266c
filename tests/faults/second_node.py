"""A second Ray node on this machine: its own raylet, object store and HTTP proxy."""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from deploy_scripts import haproxy
from deploy_scripts.cluster import OBJECT_STORE_BYTES, RAY_ENVIRONMENT
from tests.faults.processes import titled_below

CPUS = 1


class SecondNode:
    """Joins the cluster of a state folder, until it is killed."""

    def __init__(self, state: Path) -> None:
        address = (state / "ray.address").read_text()
        self._haproxy = state / "second-haproxy"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        # As the first node, but on one machine their proxies cannot have the same port.
        environment = RAY_ENVIRONMENT | haproxy.prepare(self._haproxy)
        environment["RAY_SERVE_WORKER_PROXY_HTTP_PORT"] = str(port)
        with (state / "second-node.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(Path(sys.executable).with_name("ray")), "start", "--block",
                    f"--address={address}", "--node-ip-address=127.0.0.1", f"--num-cpus={CPUS}",
                    f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats",
                    "--min-worker-port=0", "--max-worker-port=0",
                ],
                stdout=log, stderr=log, env={**os.environ, **environment},
                start_new_session=True,
            )  # fmt: skip

    def has_replica(self) -> bool:
        return bool(titled_below(self._process.pid, "ServeReplica", "DiffusionReplica"))

    def wait_for_replica(self, seconds: float) -> bool:
        """Whether one has come up here within this time."""
        deadline = time.monotonic() + seconds
        while not self.has_replica():
            assert self._process.poll() is None, "the second node does not start: see its log"
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def kill(self) -> None:
        """kill -9 of its raylet, on which all its other processes depend."""
        family = [psutil.Process(self._process.pid)]
        family += family[0].children(recursive=True)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                if process.name() == "raylet":
                    process.kill()
        _, left = psutil.wait_procs(family, 30)
        for process in left:
            process.kill()
        self._process.wait()
        haproxy.clean_up(self._haproxy)
