"""What every part measures: one checkpoint, in our engine and in plain diffusers."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from bench.drawing import request, wait_for
from bench.gpu.plain import Plain
from bench.gpu.plan import SIDES, Plan
from bench.load import Setting
from sdserve.apps import Precision
from sdserve.checkpoints import Checkpoint, inspect_checkpoint
from sdserve.families import GenerationDefaults
from sdserve.generation import GenerationParams
from workers.engine import DiffusionEngine
from workers.loading import load_engine


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One checkpoint. What is costly to make of it is made when it is asked for, once."""

    plan: Plan
    kind: str
    path: Path

    @cached_property
    def _inspected(self) -> tuple[Checkpoint, GenerationDefaults]:
        checkpoint, defaults = inspect_checkpoint(self.path)
        return checkpoint, replace(defaults, scheduler="euler")

    @property
    def side(self) -> int:
        """Of its pictures, pixels."""
        return SIDES[self.kind] if self.plan.size == "full" else self._inspected[1].width

    @property
    def what(self) -> str:
        return f"{self.kind} {self.side}x{self.side}, {self.plan.steps} steps"

    @property
    def queue(self) -> int:
        """How many pictures make a full queue."""
        return self.plan.pictures * (3 if self.kind == "sd1" and self.plan.size == "full" else 1)

    @property
    def size(self) -> tuple[int, int]:
        return self.side, self.side

    def request(self, number: int) -> GenerationParams:
        """Picture `number` of a series: each has a prompt and a seed of its own."""
        return request(self._inspected[1], self.side, number, steps=self.plan.steps)

    def requests(self, count: int, first: int = 0) -> list[GenerationParams]:
        return [self.request(number) for number in range(first, first + count)]

    @property
    def setting(self) -> Setting:
        """Of what is measured in processes of their own."""
        return Setting(
            device=self.plan.device,
            precision=self.plan.precision,
            threads=self.plan.threads,
            side=self.side,
            steps=self.plan.steps,
            guidance=self._inspected[1].guidance_scale,
        )

    @cached_property
    def engine(self) -> DiffusionEngine:
        return self.load(self.plan.precision)

    def load(self, precision: Precision, *, exact: bool = False) -> DiffusionEngine:
        """An engine of its own; as deployed by default, or `exact`."""
        return load_engine(
            self._inspected[0],
            device=self.plan.device,
            threads=self.plan.threads,
            precision=precision,
            exact=exact,
            on_phase=lambda _: None,
        )

    @cached_property
    def plain(self) -> Plain:
        return Plain(self.path, device=self.plan.device, precision=self.plan.precision)

    def wait(self) -> None:
        """Until the device has done all it was told to."""
        wait_for(self.engine)
