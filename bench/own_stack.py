"""The whole product on a port and in a folder of its own: Redis, Ray with Serve, one demo app."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sdserve.apps import app_name

ROOT = Path(__file__).parent.parent
COMMAND_LIMIT = 240  # seconds


@dataclass(frozen=True, kw_only=True)
class OwnStack:
    """Where it is, and the commands of the product for it."""

    url: str
    app: str
    environment: dict[str, str]

    @property
    def ray_address(self) -> str:
        return (Path(self.environment["SD_STATE_DIR"]) / "ray.address").read_text()

    def run(self, *arguments: str) -> None:
        """Run a module of the product.

        Raises:
            RuntimeError: it failed; with what it said.
        """
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(  # noqa: S603 (ourselves)
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True,
            timeout=COMMAND_LIMIT, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")


@contextmanager
def own_stack(
    model: Path, deploy: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Generator[OwnStack]:
    """Up, with an app of `model` on the CPU; down afterwards.

    Args:
        model: a checkpoint.
        deploy: more options of `deploy_sd.sh`.
        environment: more settings.
    """
    # A short path: Ray puts unix sockets there.
    folder = Path(tempfile.mkdtemp(prefix="sdb-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    models = folder / "models"
    models.mkdir()
    shutil.copy(model, models)
    stack = OwnStack(
        url=f"http://127.0.0.1:{port}",
        app=app_name(model),
        environment={
            **{k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "REDIS_URL")},
            "SD_STATE_DIR": str(folder / "state"),
            "SD_MODELS_DIR": str(models),
            "SD_HTTP_PORT": str(port),
            "HF_HUB_OFFLINE": "1",
            **(environment or {}),
        },
    )
    try:
        stack.run("deploy_scripts.stack", "up")
        stack.run("deploy_scripts.deploy_sd", "--gpus", "0", *deploy, model.name)
        yield stack
    finally:
        stack.run("deploy_scripts.stack", "down")
        shutil.rmtree(folder, ignore_errors=True)
