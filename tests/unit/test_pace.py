"""What is learnt of an app's speed from its finished jobs."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdserve.families import network_calls
from sdserve.pace import Line, Measured, Pace, Work
from tests.values import params

SIZES = (0.0164, 0.0369, 0.0655, 0.262, 1.05)  # megapixels


def line(*pairs: tuple[float, float]) -> Line:
    learnt = Line()
    for size, seconds in pairs:
        learnt = learnt.seen(size, seconds)
    return learnt


def test_a_base_and_a_slope_are_found_again() -> None:
    learnt = line(*((size, 0.01 + 0.5 * size) for size in SIZES))
    for size in (0.02, 0.5, 4.0):
        assert learnt.at(size) == pytest.approx(0.01 + 0.5 * size)


def test_of_one_size_others_are_in_proportion() -> None:
    learnt = line(*[(0.5, 2.0)] * 3)
    assert (learnt.at(0.5), learnt.at(1.0)) == pytest.approx((2.0, 4.0))


def test_a_line_never_grows_downwards() -> None:
    shrinking = line((0.1, 1.0), (1.0, 0.5))
    assert shrinking.at(4.0) == shrinking.at(0.01) > 0
    steep = line((0.1, 0.01), (1.0, 1.0))  # more than in proportion: a base below zero
    assert 0 < steep.at(0.01) < steep.at(0.1) < steep.at(1.0)


def test_what_was_long_ago_is_forgotten() -> None:
    slow = [(size, 10 * size) for size in SIZES * 4]
    fast = [(size, 1 * size) for size in SIZES * 8]
    assert line(*slow, *fast).at(1.0) == pytest.approx(1.0, rel=0.2)


def test_noise_of_a_fifth_stays_about_so() -> None:
    random = Random(7)
    sizes = [random.choice(SIZES) for _ in range(60)]
    noisy = line(*((size, (0.01 + 0.5 * size) * random.uniform(0.8, 1.2)) for size in sizes))
    for size in SIZES:
        assert noisy.at(size) == pytest.approx(0.01 + 0.5 * size, rel=0.2)


@given(st.lists(st.tuples(st.sampled_from(SIZES), st.floats(0, 1000)), min_size=1, max_size=30))
def test_whatever_was_seen_no_time_is_negative(pairs: list[tuple[float, float]]) -> None:
    learnt = line(*pairs)
    assert all(learnt.at(size) >= 0 for size in (0.001, *SIZES, 20.0))
    assert Line.from_text(learnt.to_text()) == learnt


def test_work_counts_rows_and_calls() -> None:
    work = Work.of(params(num_inference_steps=20, guidance_scale=5.0, num_images=3))
    assert work == Work(steps=60, calls=60, rows=2, pixels=128 * 128, images=3)
    assert Work.of(params(guidance_scale=1.0)).rows == 1
    assert Work.of(params(scheduler="heun")).calls == network_calls("heun", 20) == 39
    assert Work.of(params(num_inference_steps=20, step_cache=3, num_images=2)).calls == 14
    assert Work.from_text(work.to_text()) == work


def test_a_job_takes_its_steps_and_its_pictures() -> None:
    work = Work.of(params(num_inference_steps=10, num_images=2))
    took = Measured(work=work, denoise_seconds=4.0, picture_seconds=1.0, file_seconds=0.5)
    pace = Pace().seen(took)
    assert pace.drawing_seconds(work) == pytest.approx(5.0)
    assert pace.file_seconds(work) == pytest.approx(0.5)
    assert pace.drawing_seconds(work, step=15) == pytest.approx(1.0 + 0.5)  # one picture is left
    assert pace.drawing_seconds(work, step=10) == pytest.approx(2.0 + 1.0)  # none is decoded yet
    assert pace.drawing_seconds(work, step=20) == pytest.approx(0.5)  # the last is being decoded
    half = Work.of(params(num_inference_steps=10, num_images=1))
    assert pace.drawing_seconds(half) == pytest.approx(2.5)


def test_nothing_is_known_before_a_job_has_finished() -> None:
    assert not Pace().is_known
