"""The judge of the demo models' pictures can itself be trusted."""

from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.judge import COLOURS, Seen, look, obeys

SIDE = 128


def draw(shape: str, colour: str, background: str) -> NDArray[np.uint8]:
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    radius = 0.25 * SIDE
    mask = {
        "circle": np.hypot(x, y) < radius,
        "square": np.maximum(abs(x), abs(y)) < 0.86 * radius,
        "triangle": (y < 0.7 * radius) & (y > 2 * abs(x) - radius),
    }[shape]
    picture = np.empty((SIDE, SIDE, 3), np.uint8)
    picture[:] = COLOURS[background]
    picture[mask] = COLOURS[colour]
    return picture


@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
@pytest.mark.parametrize(("colour", "background"), [*permutations(COLOURS, 2)])
def test_accepts_drawn_shapes(shape: str, colour: str, background: str) -> None:
    picture = draw(shape, colour, background)
    assert look(picture) == Seen(background=background, colour=colour)
    assert obeys(picture, f"a {colour} {shape} on a {background} background")


def test_accepts_a_softly_drawn_shape_in_other_shades() -> None:
    noise = np.random.default_rng(3).normal(0, 8, (SIDE, SIDE, 3))
    picture = draw("circle", "red", "blue") * 0.9 + 10 + noise
    assert obeys(picture.clip(0, 255).astype(np.uint8), "a red circle on a blue background")


def test_rejects_swapped_colours() -> None:
    picture = draw("square", "blue", "red")
    assert not obeys(picture, "a red square on a blue background")


@pytest.mark.parametrize("colour", COLOURS)
def test_rejects_a_blank_picture(colour: str) -> None:
    blank = np.empty((SIDE, SIDE, 3), np.uint8)
    blank[:] = COLOURS[colour]
    assert look(blank) == Seen(background=colour, colour=None)
    for other in COLOURS:
        assert not obeys(blank, f"a {other} circle on a {colour} background")


def test_rejects_noise() -> None:
    for seed in range(50):
        noise = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        assert look(noise) == Seen(background=None, colour=None)


def test_rejects_a_shape_of_mixed_colours() -> None:
    picture = draw("square", "red", "white")
    picture[: SIDE // 2][(picture == COLOURS["red"]).all(-1)[: SIDE // 2]] = COLOURS["green"]
    assert look(picture) == Seen(background="white", colour=None)


def test_refuses_a_prompt_it_cannot_judge() -> None:
    with pytest.raises(ValueError, match="a red circle"):
        obeys(draw("circle", "red", "blue"), "a photo of a cat")
