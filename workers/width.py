"""How many pictures are denoised together, learnt from what steps have cost. Pure: no clock.

Guidance already makes two rows of a picture, so a large picture keeps the device busy alone: then
another one in the batch costs as much as it would later by itself, and only delays its neighbours.
A small one is mostly launching and waiting, and another is nearly free. Which of the two a model
is, on its device and at a size, its steps tell.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

PAYS = 0.8  # another picture joins if it costs less than this part of a picture alone
SAMPLES = 4  # steps that a cost is known by: the fastest of the last ones
# A picture that did not pay is tried again after so many steps: the load on the machine changes.
# A trial takes SAMPLES steps, and loses in each what the batch costs more than its parts.
STALE = 500

Size = tuple[int, int]  # width and height, pixels


@dataclass(kw_only=True)
class _Cost:
    """Seconds of a step of so many rows."""

    at: int = 0  # the number of the last such step
    is_met: bool = False  # the first step of its kind pays for the set-up: it does not count
    samples: list[float] = field(default_factory=list[float])

    @property
    def seconds(self) -> float | None:
        return min(self.samples) if len(self.samples) == SAMPLES else None

    def seen(self, step: int, seconds: float) -> None:
        if step - self.at > STALE:
            self.samples.clear()
        self.at = step
        if self.is_met:
            self.samples = [*self.samples, seconds][-SAMPLES:]
        self.is_met = True


class StepCosts:
    """The cost curve of one size: seconds of a step by the rows of its batch."""

    def __init__(self) -> None:
        self._steps = 0
        self._costs: dict[int, _Cost] = {}

    def seen(self, rows: int, seconds: float) -> None:
        """Note a step; of one that did not fit into memory the seconds are infinite."""
        self._steps += 1
        cost = self._costs.setdefault(rows, _Cost())
        if math.isinf(seconds):
            cost.at, cost.samples = self._steps, [seconds] * SAMPLES
        else:
            cost.seen(self._steps, seconds)

    def pays(self, rows: int, more: int, *, below: float = PAYS) -> bool | None:
        """Whether `more` rows should join `rows` of them; None: try it, or measure `rows` first."""
        before, after = self.seconds(rows), self.seconds(rows + more)
        if before is None or after is None:
            return None
        alone = self.seconds(more)
        if alone is None:
            alone = before * more / rows
        if after - before < below * alone:
            return True
        latest = max(cost.at for cost in self._costs.values() if cost.samples)
        tried = max((cost.at for of, cost in self._costs.items() if of >= rows + more), default=0)
        return None if latest - tried > STALE else False

    def seconds(self, rows: int) -> float | None:
        """Of a step; of one that was never tried, on the line between those around it."""
        if rows in self._costs:
            return self._costs[rows].seconds
        known = {of: cost.seconds for of, cost in self._costs.items() if cost.seconds is not None}
        below = max((of for of in known if of < rows), default=None)
        if below is None:
            return None
        if math.isinf(known[below]):  # what fewer rows do not fit into, more do not either
            return math.inf
        above = min((of for of in known if of > rows), default=None)
        if above is None:
            return None
        share = (rows - below) / (above - below)
        return known[below] + share * (known[above] - known[below])


class Widths:
    """How many pictures of each size go together on one replica."""

    def __init__(self, bound: int, *, pays_below: float = PAYS) -> None:
        """Know nothing yet.

        Args:
            bound: pictures at a time, at most.
            pays_below: see PAYS.
        """
        self._bound = bound
        self._pays_below = pays_below
        self._costs: dict[Size, StepCosts] = {}

    def seen(self, size: Size, rows: Sequence[int], seconds: float) -> None:
        """Note what a step took of pictures with so many rows each; infinity: it did not fit."""
        self._of(size).seen(sum(rows), seconds)

    def forget(self) -> None:
        """The model got faster: measure anew."""
        self._costs.clear()

    def together(self, size: Size, rows: Sequence[int]) -> int:
        """How many of the first of these pictures to step in one batch, at least 1.

        Args:
            size: of all of them.
            rows: of the network's batch, for each: 2 with guidance, 1 without.
        """
        costs = self._of(size)
        count, total = 1, rows[0]
        for more in rows[1 : self._bound]:
            pays = costs.pays(total, more, below=self._pays_below)
            if pays is None and costs.seconds(total) is not None:
                count += 1  # a trial
            if not pays:
                break
            count, total = count + 1, total + more
        return count

    def has_room(self, size: Size, rows: Sequence[int]) -> bool:
        """Whether another picture like the first would be stepped with these."""
        return self.together(size, [*rows, rows[0]]) > len(rows)

    def known(self, size: Size, rows: int) -> int:
        """How many pictures of so many rows are known to pay together."""
        costs, count = self._of(size), 1
        while count < self._bound and costs.pays(count * rows, rows, below=self._pays_below):
            count += 1
        return count

    def curve(self, size: Size, rows: int) -> list[float]:
        """Seconds of a step with 1, 2, ... pictures, as far as they are known."""
        curve = list[float]()
        while (seconds := self._of(size).seconds((len(curve) + 1) * rows)) is not None:
            curve.append(seconds)
            if math.isinf(seconds) or len(curve) == self._bound:
                break
        return curve

    def _of(self, size: Size) -> StepCosts:
        return self._costs.setdefault(size, StepCosts())
