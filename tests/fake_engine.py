"""An engine that draws nothing, at once, and misbehaves on request."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bench.stub_engine import StubEngine
from sdserve.generation import GenerationParams
from workers.denoising import Denoising

OnStep = Callable[[GenerationParams], None]


class FakeEngine(StubEngine):
    """Calls `on_step` with a picture's parameters before each of its steps."""

    def __init__(self, on_step: OnStep) -> None:
        super().__init__(step_seconds=0)
        self._on_step = on_step

    def step(self, batch: Sequence[Denoising]) -> bool:
        for denoising in batch:
            self._on_step(denoising.params)
            super().step([denoising])
        return True

    def decode(self, denoising: Denoising) -> NDArray[np.uint8]:
        return np.zeros((denoising.params.height, denoising.params.width, 3), np.uint8)


def loads(on_step: OnStep) -> Callable[..., FakeEngine]:
    """What a Puller takes as `load`."""
    return lambda *_args, **_options: FakeEngine(on_step)
