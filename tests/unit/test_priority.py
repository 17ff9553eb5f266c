"""Who draws on a CPU gives way to who answers."""

import subprocess
import sys

import pytest

CODE = """
import os
from dataclasses import replace
from tests.values import spec
from workers.priority import give_way
before = os.nice(0)
give_way(replace(spec(), num_gpus={gpus}))
print(os.nice(0) - before)
"""


@pytest.mark.parametrize(("gpus", "lower"), [(0, 10), (1, 0), (0.5, 0)])
def test_a_replica_without_a_gpu_has_a_lower_priority(gpus: float, lower: int) -> None:
    told = subprocess.run(  # its own priority cannot be raised again
        [sys.executable, "-c", CODE.format(gpus=gpus)], capture_output=True, text=True, check=True
    )
    assert int(told.stdout) == lower
