"""What the standby process imports leaves CUDA alone: else none of its children could use it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers.libraries import ENVIRONMENT

pytestmark = pytest.mark.integration

# torch as built for CUDA, on a machine with one GPU; the last call is what poisons a fork.
CODE = """
import torch

def count():
    raise SystemExit("asked CUDA itself")

torch.cuda._is_compiled = lambda: True
torch.cuda._device_count_nvml = lambda: 1
torch._C._cuda_getDeviceCount = count
torch._C._cuda_getCurrentRawStream = lambda device: 0  # a name that others import
from workers.libraries import import_libraries
import_libraries()
assert torch.cuda.is_available()  # the same question, in the same way
assert not torch.cuda.is_initialized()
"""


def run(environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_importing_the_libraries_does_not_ask_cuda() -> None:
    done = run(dict(ENVIRONMENT))
    assert done.returncode == 0, done.stderr


def test_it_would_without_the_environment_of_the_standby_process() -> None:
    assert "asked CUDA itself" in run({"PYTORCH_NVML_BASED_CUDA_CHECK": "0"}).stderr
