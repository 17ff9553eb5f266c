"""What is measured, in the order of its importance: a run that is cut off has the first of it.

Pure. A part is a module of this package with `measure(subject) -> Findings`; it is imported when
its turn comes, so that one that cannot be is a row of the table and not the end of the others.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

KINDS = ("sdxl", "sd1")
Goals = Mapping[str, tuple[str, ...]]
EACH: Goals = MappingProxyType(dict.fromkeys(KINDS, ()))


@dataclass(frozen=True, kw_only=True)
class Part:
    """One measurement."""

    name: str  # of its module
    goals: Goals  # the goals it shows, by the kind of checkpoint


PARTS = (
    Part(name="equality", goals=EACH),
    Part(name="latency", goals={"sdxl": ("G1", "G2"), "sd1": ("G5",)}),
    Part(name="stages", goals=EACH),
    Part(name="step_cost", goals=EACH),
    Part(name="throughput", goals={"sdxl": ("G3",), "sd1": ("G6",)}),
    Part(name="energy", goals={"sdxl": ("G10",), "sd1": ()}),
    Part(name="cancel", goals={"sdxl": ("G11",), "sd1": ()}),
    Part(name="standby", goals={"sdxl": ("C4", "C9")}),
    Part(name="cold_start", goals={"sdxl": ("C1", "C2", "C3", "C5", "C6"), "sd1": ()}),
    Part(name="first_picture", goals={"sdxl": ("C10",)}),
    Part(name="goodput", goals={"sdxl": ("G9",), "sd1": ()}),
    Part(name="variants", goals=EACH),
    Part(name="server", goals={"sdxl": ("G7", "G8", "C7", "C8")}),
)
NAMES = tuple(part.name for part in PARTS)
GOALS = tuple(f"G{n}" for n in range(1, 12)) + tuple(f"C{n}" for n in range(1, 11))
UNBUILT = {"G4": "fp8 is not built"}
SELECTABLE = {*NAMES, *GOALS} - UNBUILT.keys()


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A part with one kind of checkpoint."""

    name: str
    kind: str
    goals: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.name} {self.kind}"


def turns(kinds: Sequence[str], only: Sequence[str]) -> Iterator[Turn]:
    """What to measure.

    Args:
        kinds: of checkpoints.
        only: parts or goals, all if none.
    """
    for part in PARTS:
        for kind, goals in part.goals.items():
            is_wanted = not only or part.name in only or not set(only).isdisjoint(goals)
            if kind in kinds and is_wanted:
                yield Turn(name=part.name, kind=kind, goals=goals)
