"""How much is measured, and on what."""

from dataclasses import dataclass
from typing import Self

import torch

from bench.statistics import MIN_BLOCKS
from sdserve.apps import Precision

SIDES = {"sd1": 512, "sdxl": 1024}  # of pictures, at full size


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The same for all parts of a run."""

    device: str
    size: str  # of the checkpoints: "full" or "tiny"
    precision: Precision
    steps: int
    blocks: int  # of what takes turns (bench/statistics.py)
    pictures: int  # of a full queue; of SD 1.5 at full size three times as many
    widths: tuple[int, ...]  # pictures in a step
    samples: int  # of a thing that is done again and again: a stage, a cancel, a fork
    rounds: int  # of cold starts with a warm page cache
    cold_rounds: int  # of those with a cold one
    arrivals: float  # seconds of the open loop
    threads: int  # of torch on the CPU
    backend: str  # of torch.compile

    @classmethod
    def here(cls, *, size: str | None = None, is_smallest: bool = False) -> Self:
        """For this machine: with a GPU full size, in 20 steps and bfloat16.

        Args:
            size: of the checkpoints, if not that.
            is_smallest: so little of each that it only shows that the code runs.
        """
        is_gpu = torch.cuda.is_available()
        is_large = is_gpu and not is_smallest
        return cls(
            device="cuda:0" if is_gpu else "cpu",
            size=size or ("full" if is_gpu else "tiny"),
            precision=Precision.BFLOAT16 if is_gpu else Precision.FLOAT32,
            steps=20 if is_large else 2,
            blocks=MIN_BLOCKS,
            pictures=8 if is_large else 2,
            widths=(1, 2, 4, 8) if is_large else (1, 2),
            samples=10 if is_large else 3,
            rounds=5 if is_large else 2,
            cold_rounds=2 if is_large else 1,
            arrivals=60.0 if is_large else 2.0,
            threads=1,
            # On a CPU inductor takes minutes; this shows the swap all the same.
            backend="inductor" if is_gpu else "eager",
        )

    @property
    def is_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def is_measured(self) -> bool:
        """Whether the goals, which are those of a GPU, full size and 20 steps, can be judged."""
        return self.is_gpu and self.size == "full" and self.steps == 20
