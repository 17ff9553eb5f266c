"""How many pictures go together on devices whose steps cost this or that."""

import math
from collections.abc import Callable

import pytest

from workers.width import SAMPLES, STALE, Widths

SIZE = (512, 512)
BOUND = 8
Curve = Callable[[int], float]  # seconds of a step by its rows


def compute_bound(rows: int) -> float:  # SDXL at 1024: 2 + 26 b ms
    return 0.002 + 0.013 * rows


def flat(rows: int) -> float:  # a small model on a large device: 6 + 3.5 b ms
    return 0.006 + 0.00175 * rows


def launch_bound(rows: int) -> float:
    return max(0.028, flat(rows))


def full_at_six(rows: int) -> float:
    return 0.010 if rows <= 6 else 0.010 * rows


def crowd(
    widths: Widths, curve: Curve, *, steps: int, pictures: int = BOUND, rows: int = 2
) -> list[int]:
    """How many go together in each step while so many want to."""
    counts = list[int]()
    for _ in range(steps):
        count = widths.together(SIZE, [rows] * pictures)
        widths.seen(SIZE, [rows] * count, curve(rows * count))
        counts.append(count)
    return counts


@pytest.mark.parametrize(
    ("curve", "width"), [(compute_bound, 1), (flat, 8), (launch_bound, 8), (full_at_six, 3)]
)
def test_a_picture_joins_where_it_costs_clearly_less_than_alone(curve: Curve, width: int) -> None:
    widths = Widths(BOUND)
    crowd(widths, curve, steps=100)
    assert widths.known(SIZE, 2) == width
    assert set(crowd(widths, curve, steps=100)) == {width}


def test_nothing_is_claimed_to_pay_before_it_was_measured() -> None:
    widths = Widths(BOUND)
    assert not widths.has_room(SIZE, [2])
    counts = crowd(widths, launch_bound, steps=2 * (SAMPLES + 1))
    assert counts == [1] * (SAMPLES + 1) + [2] * (SAMPLES + 1)
    assert widths.known(SIZE, 2) == 2


def test_the_first_step_of_each_kind_does_not_count() -> None:
    """It pays for compiling, for looking for an algorithm, for memory."""
    widths, met = Widths(BOUND), set[int]()

    def slow_at_first(rows: int) -> float:
        seconds = launch_bound(rows) * (1 if rows in met else 1000)
        met.add(rows)
        return seconds

    crowd(widths, slow_at_first, steps=100)
    assert widths.known(SIZE, 2) == BOUND


def test_single_slow_steps_do_not_change_the_choice() -> None:
    """Something else had the machine for a moment."""
    widths, number = Widths(BOUND), iter(range(10**6))
    crowd(widths, lambda rows: launch_bound(rows) * (9 if next(number) % 3 == 0 else 1), steps=300)
    assert widths.known(SIZE, 2) == BOUND


def test_the_bound_holds() -> None:
    assert set(crowd(Widths(3), launch_bound, steps=200)) == {1, 2, 3}
    assert set(crowd(Widths(1), launch_bound, steps=50)) == {1}
    widths = Widths(3)
    crowd(widths, launch_bound, steps=200)
    assert widths.has_room(SIZE, [2, 2])
    assert not widths.has_room(SIZE, [2, 2, 2])


def test_a_picture_that_did_not_pay_is_tried_again_when_that_is_long_ago() -> None:
    widths = Widths(BOUND)
    counts = crowd(widths, compute_bound, steps=10 * STALE)
    trials = sum(count > 1 for count in counts)
    assert 0 < trials <= 10 * (SAMPLES + 1)
    crowd(widths, launch_bound, steps=STALE + 10 * SAMPLES)  # the machine has become another one
    assert widths.known(SIZE, 2) > 1


def test_a_batch_that_does_not_fit_is_left_alone() -> None:
    widths = Widths(BOUND)
    crowd(widths, lambda rows: math.inf if rows > 4 else launch_bound(rows), steps=100)
    assert widths.known(SIZE, 2) == 2
    assert widths.together(SIZE, [2, 2, 1]) == 2
    assert widths.curve(SIZE, 2) == [0.028, 0.028, math.inf]


def test_pictures_without_guidance_are_judged_by_their_rows() -> None:
    """One row is half a picture: what fits beside it is more."""
    widths = Widths(BOUND)
    crowd(widths, full_at_six, steps=200, rows=1)
    assert widths.known(SIZE, 1) == 6
    assert widths.together(SIZE, [2, 2, 2]) == 3
    assert widths.together(SIZE, [2, 2, 1, 1, 1]) == 4


def test_each_size_has_its_own_width() -> None:
    widths = Widths(BOUND)
    crowd(widths, launch_bound, steps=100)
    assert widths.known(SIZE, 2) == BOUND
    assert widths.known((1024, 1024), 2) == 1


def test_a_model_that_became_faster_is_measured_anew() -> None:
    widths = Widths(BOUND)
    crowd(widths, launch_bound, steps=100)
    widths.forget()
    assert widths.known(SIZE, 2) == 1
    crowd(widths, compute_bound, steps=100)
    assert widths.known(SIZE, 2) == 1


def test_always_and_never_are_widths_too() -> None:
    assert set(crowd(Widths(4, pays_below=math.inf), compute_bound, steps=100)[-50:]) == {4}
