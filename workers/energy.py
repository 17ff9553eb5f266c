"""The energy of a job out of samples of its board's counter. Pure.

The counter (NVML, Volta and later) moves on in ticks, some 20 to 100 ms apart, each worth what the
board used since the one before. Between two ticks the power is taken as constant, before the first
and after the last as that of the interval beside. No claim is made beyond the sensor's own error,
some 5 %: A100 and H100 measure a quarter of the time (arXiv 2312.02741).
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, pairwise

# Each end of a window may be a tick wrong at most, so over so many the counter itself is exact to a
# few percent, whatever the ticks' length.
EXACT_TICKS = 50


class EnergyQuality(StrEnum):
    """How an amount of energy is known."""

    MEASURED = "measured"  # by the counter, over at least EXACT_TICKS of its ticks
    INTERPOLATED = "interpolated"  # between ticks of the counter
    ESTIMATED = "estimated"  # from samples of the board's power
    SHARED = "shared"  # one of these, but other work was on the board: a part, or the board's whole


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A board at one moment; None where it does not tell."""

    at: float  # monotonic seconds
    millijoules: int | None = None  # its counter
    milliwatts: int | None = None


@dataclass(frozen=True, kw_only=True)
class Window:
    """A time in which a share of the board's work was a job's."""

    start: float  # monotonic seconds
    end: float
    share: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Energy:
    """An amount and how it is known."""

    joules: float
    quality: EnergyQuality


def energy_of(
    windows: Sequence[Window], samples: Sequence[Sample], *, is_shared: bool
) -> Energy | None:
    """What a job used in its windows.

    Args:
        windows: in order of time, not overlapping.
        samples: in order of time, from about the first window on.
        is_shared: whether other work was on the board.

    Returns:
        None: the board told nothing.
    """
    if not windows:
        return None
    start, end = windows[0].start, windows[-1].end
    ticks = _ticks(samples)
    if len(ticks) >= 2 and ticks[-1][0] > start:
        curve = _Curve(ticks)
        inside = sum(start <= at <= end for at, _ in ticks)
        exact = inside >= EXACT_TICKS
        quality = EnergyQuality.MEASURED if exact else EnergyQuality.INTERPOLATED
    elif points := _integral(samples):
        curve, quality = _Curve(points), EnergyQuality.ESTIMATED
    else:
        return None
    used = sum(w.share * (curve.at(w.end) - curve.at(w.start)) for w in windows)
    return Energy(
        joules=max(0.0, used) / 1000, quality=EnergyQuality.SHARED if is_shared else quality
    )


def _ticks(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """When the counter moved, and to what. A first value is of unknown age: no tick."""
    told = [(s.at, s.millijoules) for s in samples if s.millijoules is not None]
    return [(at, float(after)) for (_, before), (at, after) in pairwise(told) if after > before]


def _integral(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """The energy since the first sample of power, by trapezoids: seconds, millijoules."""
    told = [(s.at, float(s.milliwatts)) for s in samples if s.milliwatts is not None]
    if len(told) == 1:
        ((at, power),) = told
        return [(at, 0.0), (at + 1, power)]
    parts = (
        (later - earlier) * (before + after) / 2
        for (earlier, before), (later, after) in pairwise(told)
    )
    return list(zip((at for at, _ in told), accumulate(parts, initial=0.0), strict=False))


class _Curve:
    """A line through points, prolonged at both ends."""

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        self._points = points
        self._times = [at for at, _ in points]

    def at(self, time: float) -> float:
        place = min(max(bisect_right(self._times, time), 1), len(self._points) - 1)
        (before, low), (after, high) = self._points[place - 1 : place + 1]
        return low + (high - low) * (time - before) / (after - before)
