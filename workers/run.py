"""One claimed job on its way through the engine: its pictures so far, and where the time went."""

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sdserve.jobs import ClaimedJob
from sdserve.pace import Measured, Work
from workers.energy import Window
from workers.metering import Meter
from workers.stopwatch import Section

if TYPE_CHECKING:  # the engine imports torch; the replica must be able to start without it
    from workers.denoising import Denoising


@dataclass(kw_only=True)
class JobRun:
    """The state of a job inside a replica. Owned by the engine thread until it is finished."""

    job: ClaimedJob
    meter: Meter
    queue_seconds: float
    precision: str = ""  # of the engine that draws it
    is_compiled: bool = False  # a compiled network may have had a part in it
    is_exact: bool = False  # so far its pictures are diffusers' own, bit for bit
    load_seconds: float
    denoising: "Denoising | None" = None  # the picture being drawn
    pictures: list[NDArray[np.uint8]] = field(default_factory=list)  # each [H, W, 3]
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("encode", "denoise", "decode", "image_encode"), 0.0)
    )
    claimed_at: float = field(default_factory=time.monotonic)
    preview: Future[None] | None = None  # that was asked for last
    preview_at: float = 0.0  # monotonic
    cpu_seconds: float = 0.0
    gpu_seconds: float | None = None
    peak_allocated_mb: float | None = None
    peak_reserved_mb: float | None = None
    windows: list[Window] = field(default_factory=list[Window])  # of its work on the device
    prompts_cached: int = 0  # pictures whose prompts were encoded for an earlier one
    is_shared: bool = False  # another job was on the replica meanwhile

    @property
    def steps_done(self) -> int:
        done = len(self.pictures) * self.job.params.num_inference_steps
        return done + (self.denoising.steps_done if self.denoising else 0)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, pixels."""
        return self.job.params.width, self.job.params.height

    @property
    def rows(self) -> int:
        """Its part of the network's batch; before it has begun, what it probably will be."""
        return self.denoising.rows if self.denoising else Work.of(self.job.params).rows

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

    def add(self, part: str, section: Section, share: float = 1.0) -> None:
        """Bill this job for its share of a section of the engine's work."""
        self.seconds[part] += section.seconds * share
        self.cpu_seconds += section.cpu_seconds * share
        if section.gpu_seconds is not None:
            self.gpu_seconds = (self.gpu_seconds or 0.0) + section.gpu_seconds * share
        self.peak_allocated_mb = _higher(self.peak_allocated_mb, section.peak_allocated_mb)
        self.peak_reserved_mb = _higher(self.peak_reserved_mb, section.peak_reserved_mb)
        self.windows.append(Window(start=section.start, end=section.end, share=share))

    def add_image_encoding(self, seconds: float, cpu_seconds: float) -> None:
        """Bill this job for the work beside the engine's."""
        self.seconds["image_encode"] += seconds
        self.cpu_seconds += cpu_seconds


def _higher(peak: float | None, other: float | None) -> float | None:
    return max((value for value in (peak, other) if value is not None), default=None)
