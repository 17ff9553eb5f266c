"""A whole stack of our own: Redis, Ray with Serve, the gateway; driven as a user drives it."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.server import Server
from tests.faults.processes import Processes

ROOT = Path(__file__).parent.parent.parent
DEMO_MODELS = ROOT / "demo_models"
COMMAND_LIMIT = 240  # seconds, on a loaded machine


class Stack:
    """The commands of the product, in an environment of their own."""

    def __init__(self, folder: Path) -> None:
        self.models = folder / "models"
        self.models.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {
            **{k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "REDIS_URL")},
            "SD_STATE_DIR": str(folder / "state"),
            "SD_MODELS_DIR": str(self.models),
            "SD_HTTP_PORT": str(port),
            "SD_LEASE": "4",
            # No model hub, and nothing of one in a cache.
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "HF_HOME": str(folder / "no-hub"),
        }

    def add_model(self, name: str) -> Path:
        """Put a demo checkpoint into the models folder."""
        return Path(shutil.copy(DEMO_MODELS / f"{name}.safetensors", self.models))

    @property
    def processes(self) -> Processes:
        """All of Ray's, Serve's and ours on this stack's cluster."""
        return Processes(Path(self.environment["SD_STATE_DIR"]))

    def stack(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "deploy_scripts.stack", *arguments)

    def deploy_sd(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("bash", "deploy_sd.sh", *arguments)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT,
            check=False,
        )


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    one = Stack(tmp_path_factory.mktemp("stack"))
    try:
        started = one.stack("up")
        assert started.returncode == 0, started.stderr
        yield one
    finally:
        stopped = one.stack("down")
    assert stopped.returncode == 0, stopped.stderr


@pytest.fixture(scope="session")
def server(stack: Stack) -> Iterator[Server]:
    with Server(stack.url) as one:
        yield one
