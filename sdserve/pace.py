"""How long work takes on an app, learnt from the jobs that it has finished. Pure.

Three straight lines per app, each over the megapixels of what is computed at a time:

- step: seconds of one call of the network, over rows x megapixels (guidance makes two rows);
- picture: seconds of a picture's encoded prompt and its decoding, over its megapixels;
- file: seconds until it is a PNG, JPEG or WebP file, over its megapixels; beside the next job.

A line has a part that does not depend on the size and one that grows with it, because small
pictures pay mostly for the former and large ones for the latter.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

from sdserve.families import network_calls
from sdserve.generation import GenerationParams

FADING = 0.9  # what an observation weighs once another has been made: some ten jobs count


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a job asks of a replica, in the units that decide how long it takes."""

    steps: int  # over all pictures, as progress counts them
    # Of the network, over all pictures: some samplers call it more than once a step. With a step
    # cache the whole calls alone: of a real model another has 2 to 8 % of its arithmetic.
    calls: int
    rows: int  # in a call: 2 with guidance
    pixels: int  # of a picture
    images: int

    @classmethod
    def of(cls, params: GenerationParams) -> Self:
        """The work of these parameters.

        Of a model that takes guidance as an input the rows are one too many. So they are in all
        that is learnt from it, which cancels it out.
        """
        calls = network_calls(params.scheduler, params.num_inference_steps)
        return cls(
            steps=params.total_steps,
            calls=-(-calls // params.step_cache) * params.num_images,
            rows=2 if params.guidance_scale > 1 else 1,
            pixels=params.width * params.height,
            images=params.num_images,
        )

    def to_text(self) -> str:
        return f"{self.steps} {self.calls} {self.rows} {self.pixels} {self.images}"

    @classmethod
    def from_text(cls, text: str) -> Self:
        steps, calls, rows, pixels, images = map(int, text.split())
        return cls(steps=steps, calls=calls, rows=rows, pixels=pixels, images=images)

    @property
    def megapixels(self) -> float:
        return self.pixels / 1e6

    @property
    def row_megapixels(self) -> float:
        return self.rows * self.megapixels

    def pictures_left(self, step: int) -> int:
        """How many are not decoded yet, of a job that has done so many steps."""
        steps_each = self.steps // self.images
        return self.images - max(step - 1, 0) // steps_each  # after its last step one is decoded


@dataclass(frozen=True, kw_only=True)
class Line:
    """seconds = base + slope x size, fitted to observations of which the older weigh less.

    Least squares of the relative error, i.e. of seconds / size = slope + base / size. What is kept
    are weighted sums over u = 1 / size and z = seconds / size, so that one more observation is a
    few additions (finish.lua does them too).
    """

    n: float = 0.0
    u: float = 0.0
    z: float = 0.0
    uu: float = 0.0
    uz: float = 0.0

    def seen(self, size: float, seconds: float) -> "Line":
        """The line with one more observation."""
        u, z = 1 / size, seconds / size
        return Line(
            n=self.n * FADING + 1,
            u=self.u * FADING + u,
            z=self.z * FADING + z,
            uu=self.uu * FADING + u * u,
            uz=self.uz * FADING + u * z,
        )

    def at(self, size: float) -> float:
        """Seconds for this size; at least one observation was made."""
        base, slope = self.fit
        return base + slope * size

    @cached_property
    def fit(self) -> tuple[float, float]:
        """Base and slope, neither below zero: a line through noise may not grow downwards."""
        spread = self.n * self.uu - self.u * self.u
        if spread > 1e-9 * self.n * self.uu:  # else all were of one size: in proportion to it
            base = (self.n * self.uz - self.u * self.z) / spread
            slope = (self.z - base * self.u) / self.n
            if base >= 0 and slope >= 0:
                return base, slope
            if slope < 0:
                return self.uz / self.uu, 0.0
        return 0.0, self.z / self.n

    def to_text(self) -> str:
        return f"{self.n!r} {self.u!r} {self.z!r} {self.uu!r} {self.uz!r}"

    @classmethod
    def from_text(cls, text: str | None) -> Self:
        """The line of a text; one without observations where there is none."""
        if not text:
            return cls()
        n, u, z, uu, uz = map(float, text.split())
        return cls(n=n, u=u, z=z, uu=uu, uz=uz)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a finished job took, of the replica's own time."""

    work: Work
    denoise_seconds: float  # all calls of the network
    picture_seconds: float  # encoded prompts and decoding, all pictures
    file_seconds: float  # PNG, JPEG or WebP, all pictures

    @property
    def observations(self) -> list[tuple[float, float]]:
        """Size and seconds for the lines of step, picture and file."""
        work = self.work
        return [
            (work.row_megapixels, self.denoise_seconds / work.calls),
            (work.megapixels, self.picture_seconds / work.images),
            (work.megapixels, self.file_seconds / work.images),
        ]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The three lines of an app."""

    step: Line = field(default_factory=Line)
    picture: Line = field(default_factory=Line)
    file: Line = field(default_factory=Line)

    @property
    def is_known(self) -> bool:
        return self.step.n > 0

    def seen(self, measured: Measured) -> "Pace":
        step, picture, file = measured.observations
        return Pace(
            step=self.step.seen(*step),
            picture=self.picture.seen(*picture),
            file=self.file.seen(*file),
        )

    def drawing_seconds(self, work: Work, step: int = 0) -> float:
        """Of a replica's time, from this step to the last decoded picture; the pace is known."""
        share, pictures = 1.0, work.images
        if step:
            share -= min(step / work.steps, 1)
            pictures = work.pictures_left(min(step, work.steps))
        seconds = work.calls * share * self.step.at(work.row_megapixels)
        if self.picture.n:
            seconds += pictures * self.picture.at(work.megapixels)
        return seconds

    def file_seconds(self, work: Work) -> float:
        """From the last decoded picture to the stored result."""
        return work.images * self.file.at(work.megapixels) if self.file.n else 0.0
