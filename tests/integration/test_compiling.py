"""A network that is compiled while it serves."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sdserve.checkpoints import inspect_checkpoint
from tests.values import params_for
from workers.compiling import MAX_KINDS, CompiledNetwork
from workers.denoising import Denoising
from workers.engine import DiffusionEngine
from workers.loading import load_engine

pytestmark = pytest.mark.integration

DEMO_MODELS = Path(__file__).parents[2] / "demo_models"


@pytest.fixture
def path() -> Path:
    return DEMO_MODELS / "tiny-shapes-sdxl.safetensors"


def load(path: Path) -> DiffusionEngine:
    checkpoint, _ = inspect_checkpoint(path)
    return load_engine(checkpoint, device="cpu", threads=1, on_phase=lambda _: None)


def compiling(engine: DiffusionEngine, backend: str) -> CompiledNetwork:
    engine.compile(backend=backend)
    network = vars(vars(engine)["_denoiser"])["network"]
    assert isinstance(network, CompiledNetwork)
    return network


def denoise(engine: DiffusionEngine, path: Path, **changes: Any) -> Denoising:
    asked = params_for(path, **{"num_inference_steps": 3, "width": 64, "height": 64, **changes})
    denoising = engine.begin(asked, 0)
    while not denoising.is_done:
        engine.step([denoising])
    return denoising


def test_it_takes_over_between_two_steps_and_draws_the_same(path: Path) -> None:
    engine = load(path)
    one, other = {"seed": 1}, {"seed": 2, "prompt": "a white square", "scheduler": "ddim"}
    expected = [denoise(engine, path, **changes).latents for changes in (one, other)]
    network = compiling(engine, "aot_eager")
    assert torch.equal(denoise(engine, path, **one).latents, expected[0])
    network.wait()
    assert network.ready == engine.compiled == 1
    # What is compiled serves any request of its kind: none waits for a compiler.
    dynamo: Any = vars(torch)["_dynamo"]  # its settings have no other name
    with dynamo.config.patch(error_on_recompile=True):
        compiled = denoise(engine, path, **other).latents
    assert (compiled - expected[1]).abs().max() / expected[1].abs().max() < 1e-5
    for number, changes in enumerate(({"guidance_scale": 1.0}, {"scheduler": "euler"}), 2):
        denoise(engine, path, **changes)  # other rows; timesteps of another type
        network.wait()
        assert network.ready == number


def test_what_cannot_be_compiled_stays_as_it_is_and_is_told_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = load(path)
    expected = denoise(engine, path).latents
    network = compiling(engine, "no such backend")
    for _ in range(2):
        assert torch.equal(denoise(engine, path).latents, expected)
        network.wait()
    assert network.ready == 0
    told = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.message[:13] for record in told] == ["not compiled "]


def test_shapes_are_compiled_up_to_a_bound() -> None:
    class Network(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    network = CompiledNetwork(Network(), backend="eager")
    for size in range(1, MAX_KINDS + 4):
        with torch.inference_mode():
            assert torch.equal(network(torch.ones(size, 2)), torch.full((size, 2), 2.0))
        network.wait()
    assert network.ready == MAX_KINDS


_PROCESS = """
import sys
from pathlib import Path

import torch

from sdserve.checkpoints import inspect_checkpoint
from workers.compiling import CompiledNetwork
from workers.loading import load_engine

checkpoint, _ = inspect_checkpoint(Path(sys.argv[1]))
load_engine(
    checkpoint, device="cpu", threads=1, compile_cache=Path(sys.argv[2]), on_phase=lambda _: None
)
network = CompiledNetwork(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU()))
with torch.inference_mode():
    network(torch.ones(2, 8))
network.wait()
assert network.ready == 1
from torch._dynamo.utils import counters
print(counters["inductor"]["fxgraph_cache_miss"], counters["inductor"]["fxgraph_cache_hit"])
"""


def test_what_one_process_compiled_a_later_one_finds_on_disk(path: Path, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}
    found = [
        subprocess.run(
            [sys.executable, "-c", _PROCESS, str(path), str(tmp_path / "compiled")],
            env=environment, capture_output=True, text=True, check=True,
        ).stdout.split()
        for _ in range(2)
    ]  # fmt: skip
    assert found == [["1", "0"], ["0", "1"]]
