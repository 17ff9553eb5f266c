"""One claimed job on its way through the engine: its pictures so far, and where the time went."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sdserve.jobs import ClaimedJob
from sdserve.pace import Measured, Work
from workers.metering import Meter

if TYPE_CHECKING:  # the engine imports torch; the replica must be able to start without it
    from workers.denoising import Denoising


@dataclass(kw_only=True)
class JobRun:
    """The state of a job inside a replica. Owned by the engine thread until it is finished."""

    job: ClaimedJob
    meter: Meter
    queue_seconds: float
    load_seconds: float
    denoising: "Denoising | None" = None  # the picture being drawn
    pictures: list[NDArray[np.uint8]] = field(default_factory=list)  # each [H, W, 3]
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("encode", "denoise", "decode", "image_encode"), 0.0)
    )
    claimed_at: float = field(default_factory=time.monotonic)

    @property
    def steps_done(self) -> int:
        done = len(self.pictures) * self.job.params.num_inference_steps
        return done + (self.denoising.steps_done if self.denoising else 0)

    @property
    def phase(self) -> str:
        total = self.job.params.total_steps
        if self.steps_done < total:
            return f"step {self.steps_done} of {total}"
        return "encoding the image"

    @property
    def measured(self) -> Measured:
        """What it took, once it is done."""
        return Measured(
            work=Work.of(self.job.params),
            denoise_seconds=self.seconds["denoise"],
            picture_seconds=self.seconds["encode"] + self.seconds["decode"],
            file_seconds=self.seconds["image_encode"],
        )

    @contextmanager
    def timed(self, part: str) -> Generator[None]:
        """Add the time of the block to one part of the bill."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - start
