"""The statistics of the benchmarks: what they claim, they can claim."""

import random
from collections import Counter

import pytest

from bench.statistics import (
    Estimate,
    Verdict,
    abba,
    bootstrap_difference,
    bootstrap_ratio,
    fairness,
    judge,
    quantile,
    tail,
)

SAME = Estimate(value=1.0, low=0.98, high=1.02)


def noisy(draw: random.Random, level: float, count: int = 20) -> list[float]:
    return [level * draw.uniform(0.9, 1.1) for _ in range(count)]


def test_every_way_has_the_same_mean_place_in_each_block() -> None:
    ways = ["a", "b", "c"]
    for turns in abba(ways, 7):
        places = {way: [at for at, one in enumerate(turns) if one == way] for way in ways}
        assert {sum(at) for at in places.values()} == {len(turns) - 1}
        assert Counter(turns) == dict.fromkeys(ways, 2)


def test_two_ways_take_turns_as_the_name_says() -> None:
    assert abba(["A", "B"], 5)[:2] == [list("ABBA"), list("BAAB")]


def test_the_ways_take_turns_at_coming_first() -> None:
    assert {turns[0] for turns in abba(["a", "b", "c"], 5)} == {"a", "b", "c"}


def test_fewer_than_five_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        abba(["a", "b"], 4)


def test_a_drift_of_the_machine_does_not_touch_the_ratio() -> None:
    draw = random.Random(3)
    theirs = [noisy(draw, 2.0**block) for block in range(6)]  # 32 times slower at the end
    ours = [noisy(draw, 1.5 * 2.0**block) for block in range(6)]
    ratio = bootstrap_ratio(ours, theirs)
    assert ratio.low < 1.5 < ratio.high
    assert ratio.high - ratio.low < 0.2


def test_a_difference_is_told_in_the_unit_of_the_samples() -> None:
    draw = random.Random(5)
    theirs = [noisy(draw, 10 * block) for block in range(1, 6)]
    ours = [[sample + 3 for sample in block] for block in theirs]
    difference = bootstrap_difference(ours, theirs)
    assert difference.value == pytest.approx(3)
    assert difference.low < 3 < difference.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draw, rounds = random.Random(4), 200
    covered = 0
    for _ in range(rounds):
        ours = [noisy(draw, draw.uniform(0.9, 1.1)) for _ in range(8)]
        theirs = [noisy(draw, draw.uniform(0.9, 1.1)) for _ in range(8)]
        ratio = bootstrap_ratio(ours, theirs, resamples=200)
        covered += ratio.low <= 1 <= ratio.high
    assert covered >= 0.88 * rounds  # eight blocks are few: a little under 95 %


def test_a_single_slow_sample_does_not_decide() -> None:
    ours = [[1.0] * 9 + [100.0] for _ in range(5)]
    assert bootstrap_ratio(ours, [[1.0] * 10 for _ in range(5)]).value == 1


def test_blocks_without_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="needs samples"):
        bootstrap_ratio([[1.0], []], [[1.0], [1.0]])
    with pytest.raises(ValueError, match="longer"):
        bootstrap_ratio([[1.0]], [[1.0], [1.0]])


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.0, 1.02, Verdict.MET),
        (1.03, 1.2, Verdict.NOT_MET),
        (1.0, 1.03, Verdict.UNSURE),
    ],
)
def test_an_interval_that_crosses_the_threshold_gives_no_verdict(
    low: float, high: float, verdict: Verdict
) -> None:
    assert judge(Estimate(value=1.01, low=low, high=high), SAME, at_most=1.02) is verdict


def test_a_goal_may_be_a_least_ratio() -> None:
    assert judge(Estimate(value=1, low=0.985, high=1.1), SAME, at_least=0.98) is Verdict.MET
    assert judge(Estimate(value=0.9, low=0.8, high=0.97), SAME, at_least=0.98) is Verdict.NOT_MET
    assert judge(Estimate(value=0.98, low=0.9, high=1.1), SAME, at_least=0.98) is Verdict.UNSURE


@pytest.mark.parametrize("drift", [0.94, 1.06])
def test_a_control_that_drifts_gives_no_verdict(drift: float) -> None:
    clear = Estimate(value=0.5, low=0.49, high=0.51)
    control = Estimate(value=drift, low=drift, high=drift)
    assert judge(clear, control, at_most=1.0) is Verdict.DRIFTED


def test_a_verdict_needs_exactly_one_threshold() -> None:
    for thresholds in ({}, {"at_most": 1.0, "at_least": 1.0}):
        with pytest.raises(ValueError, match="one of"):
            judge(SAME, SAME, **thresholds)


def test_a_p99_is_told_of_a_thousand_samples_only() -> None:
    assert tail(range(1, 1001)) == ("p99", 990)
    assert tail(range(1, 1000)) == ("p95", 950)


def test_a_quantile_is_a_sample() -> None:
    assert [quantile([3, 1, 2], share) for share in (0.0, 0.5, 1.0)] == [1, 2, 3]


def test_fairness_is_one_when_all_get_the_same() -> None:
    assert fairness([2, 2, 2, 2]) == 1
    assert fairness([1, 0, 0, 0]) == 0.25
