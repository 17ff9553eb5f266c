"""Energy out of a board's counter: ticks, windows and shares, on a made-up board that is known."""

from collections.abc import Callable, Sequence

import pytest

from workers.energy import Energy, EnergyQuality, Sample, Window, energy_of

TICK = 0.1  # seconds


def board(
    seconds: float,
    power: Callable[[float], float],
    *,
    tick: float = TICK,
    phase: float = 0.03,
    counter: bool = True,
    start: float = 0.0,
) -> list[Sample]:
    """Samples every 10 ms of a board that uses `power(t)` watts, with a counter that ticks."""
    samples = list[Sample]()
    told = used = at = 0.0
    next_tick = phase
    while at < seconds:
        if at >= next_tick:
            told, next_tick = used, next_tick + tick
        if at >= start:
            millijoules = 5_000_000 + round(told) if counter else None
            samples.append(
                Sample(at=at, millijoules=millijoules, milliwatts=round(1000 * power(at)))
            )
        used += 10 * power(at)  # millijoules in 10 ms
        at = round(at + 0.01, 6)
    return samples


def joules(windows: Sequence[Window], samples: Sequence[Sample]) -> Energy:
    energy = energy_of(windows, samples, is_shared=False)
    assert energy is not None
    return energy


def busy_from_1_to(end: float) -> Callable[[float], float]:
    return lambda at: 600.0 if 1 <= at < end else 70.0


def test_a_long_window_is_what_the_counter_counted() -> None:
    energy = joules([Window(start=1, end=11)], board(12, busy_from_1_to(11)))
    assert energy.quality is EnergyQuality.MEASURED
    assert energy.joules == pytest.approx(6000, rel=0.01)


def test_a_second_under_load_is_interpolated_between_ticks() -> None:
    """The raw counter, read at both ends, is wrong by up to a tick's worth: 60 J of 600 here."""
    work = [Window(start=2.0, end=3.0)]
    for phase in (0.0, 0.02, 0.05, 0.09):
        energy = joules(work, board(4, busy_from_1_to(4), phase=phase))
        assert energy.quality is EnergyQuality.INTERPOLATED
        assert energy.joules == pytest.approx(600, rel=0.02)


def test_short_ticks_make_the_same_second_exact() -> None:
    energy = joules([Window(start=2, end=3)], board(4, busy_from_1_to(4), tick=0.02, phase=0.01))
    assert energy.quality is EnergyQuality.MEASURED
    assert energy.joules == pytest.approx(600, rel=0.02)


def test_ends_beyond_the_samples_go_on_as_the_interval_beside() -> None:
    samples = [sample for sample in board(3, busy_from_1_to(9)) if sample.at >= 1.005]
    energy = joules([Window(start=1.0, end=3.05)], samples)
    assert energy.joules == pytest.approx(2.05 * 600, rel=0.02)


def test_work_between_two_ticks_is_estimated_from_power() -> None:
    samples = [sample for sample in board(1.10, busy_from_1_to(9)) if sample.at >= 1.0]
    energy = joules([Window(start=1.0, end=1.06)], samples)
    assert energy.quality is EnergyQuality.ESTIMATED
    assert energy.joules == pytest.approx(36, rel=0.01)


def test_a_board_without_a_counter_is_estimated_from_its_power() -> None:
    samples = board(12, busy_from_1_to(11), counter=False)
    energy = joules([Window(start=1, end=11)], samples)
    assert energy.quality is EnergyQuality.ESTIMATED
    assert energy.joules == pytest.approx(6000, rel=0.01)


def test_one_sample_of_power_is_an_estimate_too() -> None:
    energy = joules([Window(start=1, end=1.5)], [Sample(at=1.2, milliwatts=400_000)])
    assert energy.quality is EnergyQuality.ESTIMATED
    assert energy.joules == pytest.approx(200)


def test_a_board_that_tells_nothing_is_not_made_up() -> None:
    windows = [Window(start=1, end=2)]
    assert energy_of(windows, [Sample(at=k / 100) for k in range(200)], is_shared=False) is None
    assert energy_of(windows, [], is_shared=False) is None
    assert energy_of([], board(2, busy_from_1_to(9)), is_shared=False) is None


def test_shares_of_a_batch_add_up_to_the_board() -> None:
    """Three jobs in turns and together: what they get is what the board used, and no more."""
    samples = board(13, busy_from_1_to(12))
    steps = [(1 + 0.1 * k, 1 + 0.1 * (k + 1)) for k in range(110)]
    parts = [
        [Window(start=start, end=end, share=share) for (start, end) in steps[first:last]]
        for first, last, share in ((0, 110, 0.4), (0, 110, 0.2), (0, 60, 0.4))
    ]
    parts.append([Window(start=start, end=end, share=0.4) for start, end in steps[60:]])
    energies = [energy_of(windows, samples, is_shared=True) for windows in parts]
    assert all(energy and energy.quality is EnergyQuality.SHARED for energy in energies)
    whole = joules([Window(start=1, end=12)], samples)
    assert sum(energy.joules for energy in energies if energy) == pytest.approx(whole.joules)


def test_a_pause_between_windows_is_nobodys() -> None:
    samples = board(12, lambda _: 600.0)
    energy = joules([Window(start=1, end=3), Window(start=8, end=11)], samples)
    assert energy.joules == pytest.approx(3000, rel=0.01)
