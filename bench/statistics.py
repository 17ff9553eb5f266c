"""What figures are worth: the order of measuring, the ratio and its interval, the verdict. Pure.

Ratios, because absolute times of a shared machine mean little; interleaved, because it drifts.
"""

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

MAX_DRIFT = 0.05  # of the control: the same thing measured twice
MIN_BLOCKS = 5
P99_SAMPLES = 1000  # with fewer the hundredth is one accident

Samples = Sequence[float]


def abba(ways: Sequence[str], blocks: int) -> list[list[str]]:
    """The turns of each block: every way forth and back, so that a steady drift cancels out.

    Each block begins with another way, so that none always comes first: A B C C B A, B C A A C B.

    Raises:
        ValueError: too few blocks for an interval.
    """
    if blocks < MIN_BLOCKS:
        raise ValueError(f"{blocks} blocks are too few for an interval: use {MIN_BLOCKS} or more")
    turns = list[list[str]]()
    for block in range(blocks):
        first = block % len(ways)
        forth = [*ways[first:], *ways[:first]]
        turns.append([*forth, *reversed(forth)])
    return turns


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A ratio or a difference with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_ratio(
    ours: Sequence[Samples],
    theirs: Sequence[Samples],
    *,
    of: Callable[[Samples], float] = statistics.median,
    resamples: int = 2000,
    seed: int = 1,
) -> Estimate:
    """How many times theirs ours is: the geometric mean, over the blocks, of of(ours) / of(theirs).

    Blocks are drawn anew, and the samples within each (a two-level bootstrap, percentile interval):
    a block is what shares the machine's state, so blocks alone are independent.

    Args:
        ours: the samples of each block.
        theirs: of the same blocks.
        of: what is told of a block's samples.
        resamples: how often.
        seed: of the draws.

    Raises:
        ValueError: the blocks do not match, or one has no sample.
    """
    return _bootstrap(ours, theirs, _mean_ratio, of, resamples, seed)


def bootstrap_difference(
    ours: Sequence[Samples],
    theirs: Sequence[Samples],
    *,
    of: Callable[[Samples], float] = statistics.median,
    resamples: int = 2000,
    seed: int = 1,
) -> Estimate:
    """As `bootstrap_ratio`: the mean, over the blocks, of of(ours) - of(theirs)."""
    return _bootstrap(ours, theirs, _mean_difference, of, resamples, seed)


def _bootstrap(
    ours: Sequence[Samples],
    theirs: Sequence[Samples],
    compare: Callable[[Sequence[tuple[float, float]]], float],
    of: Callable[[Samples], float],
    resamples: int,
    seed: int,
) -> Estimate:
    pairs = list(zip(ours, theirs, strict=True))
    if not pairs or not all(mine and other for mine, other in pairs):
        raise ValueError("every block needs samples of both sides")
    draw = random.Random(seed)

    def once() -> float:
        chosen = draw.choices(pairs, k=len(pairs))
        return compare(
            [
                (of(draw.choices(mine, k=len(mine))), of(draw.choices(other, k=len(other))))
                for mine, other in chosen
            ]
        )

    drawn = sorted(once() for _ in range(resamples))
    return Estimate(
        value=compare([(of(mine), of(other)) for mine, other in pairs]),
        low=drawn[math.floor(0.025 * resamples)],
        high=drawn[math.ceil(0.975 * resamples) - 1],
    )


def _mean_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return math.exp(statistics.fmean(math.log(mine / other) for mine, other in pairs))


def _mean_difference(pairs: Sequence[tuple[float, float]]) -> float:
    return statistics.fmean(mine - other for mine, other in pairs)


class Verdict(StrEnum):
    """Whether a goal was reached. The last two are no verdict."""

    MET = "met"
    NOT_MET = "not met"
    UNSURE = "no verdict: the interval crosses the threshold"
    DRIFTED = "no verdict: the control drifted"


def judge(
    measured: Estimate,
    control: Estimate,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Verdict:
    """Hold an estimate against one threshold.

    Args:
        measured: a ratio or a difference.
        control: the denominator against itself, in the same blocks.
        at_most: the goal is this or less.
        at_least: the goal is this or more.

    Raises:
        ValueError: not exactly one threshold.
    """
    if (at_most is None) == (at_least is None):
        raise ValueError("one of at_most and at_least")
    if abs(control.value - 1) > MAX_DRIFT:
        return Verdict.DRIFTED
    if at_most is not None:
        met, missed = measured.high <= at_most, measured.low > at_most
    else:
        assert at_least is not None  # noqa: S101 (one of both)
        met, missed = measured.low >= at_least, measured.high < at_least
    if met:
        return Verdict.MET
    return Verdict.NOT_MET if missed else Verdict.UNSURE


def quantile(samples: Samples, share: float) -> float:
    """The smallest sample that at least `share` of all do not exceed (nearest rank)."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def tail(samples: Samples) -> tuple[str, float]:
    """The p99 and its name; the p95 when there are too few samples for a p99."""
    if len(samples) >= P99_SAMPLES:
        return "p99", quantile(samples, 0.99)
    return "p95", quantile(samples, 0.95)


def fairness(shares: Samples) -> float:
    """Jain's index of what each got: 1 when all got the same, 1/n when one got all.

    R. Jain, D. Chiu, W. Hawe: A Quantitative Measure of Fairness, DEC TR-301, 1984.
    """
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))
