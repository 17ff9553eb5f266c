"""Whether a picture shows what its prompt asked for: "a red circle on a blue background".

NumPy only, so that it judges bytes that came over HTTP as well as the engine's pixels. It looks at
two colours, the background's and the shape's; it does not tell a circle from a square.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COLOURS = {
    "red": (222, 38, 38),
    "green": (34, 160, 60),
    "blue": (36, 72, 220),
    "yellow": (245, 215, 30),
    "orange": (245, 130, 20),
    "purple": (135, 45, 175),
    "white": (245, 245, 245),
    "black": (18, 18, 18),
}
SHAPES = ("circle", "square", "triangle", "star")

_NAMES = tuple(COLOURS)
_PALETTE = np.array(list(COLOURS.values()), np.float32)  # [8, 3]
_NEAR = 90.0  # RGB distance within which a pixel counts as a colour of the palette
_CLEAR = 0.75  # share of pixels that must agree on a colour


@dataclass(frozen=True)
class Seen:
    """The colours of a picture; None where no colour is clear."""

    background: str | None
    colour: str | None  # of the shape


def look(pixels: NDArray[np.uint8]) -> Seen:
    """Judge a picture [H, W, 3] by the colour along its edge and the largest other one inside."""
    rgb = pixels.astype(np.float32)
    distances = np.linalg.norm(rgb[:, :, None] - _PALETTE, axis=-1)  # [H, W, 8]
    nearest = np.where(distances.min(-1) < _NEAR, distances.argmin(-1), -1)
    edge = max(2, min(nearest.shape) // 20)
    is_edge = np.ones(nearest.shape, bool)
    is_edge[edge:-edge, edge:-edge] = False
    background = _clear_colour(nearest[is_edge])
    if background is None:
        return Seen(background=None, colour=None)
    own = np.median(rgb[is_edge], axis=0)  # this picture's shade of the background
    is_shape = _without_rim(np.linalg.norm(rgb - own, axis=-1) > 60)
    if not 0.01 < is_shape.mean() < 0.7:  # nothing there, or no shape on a background
        return Seen(background=background, colour=None)
    colour = _clear_colour(nearest[is_shape])
    return Seen(background=background, colour=None if colour == background else colour)


def obeys(pixels: NDArray[np.uint8], prompt: str) -> bool:
    """Whether both colours are those of the prompt.

    Raises:
        ValueError: the prompt does not name a shape's colour and a background's.
    """
    words = "|".join(COLOURS)
    shape = re.search(rf"\b({words}) (?:{'|'.join(SHAPES)})s?\b", prompt)
    background = re.search(rf"\b({words}) background\b", prompt)
    if shape is None or background is None:
        raise ValueError(f"not of the form 'a red circle on a blue background': {prompt!r}")
    return look(pixels) == Seen(background=background[1], colour=shape[1])


def _clear_colour(indices: NDArray[np.intp]) -> str | None:
    """The palette colour most pixels agree on; index -1 is no colour."""
    votes = np.bincount(indices[indices >= 0], minlength=len(_NAMES))
    winner = int(votes.argmax())
    return _NAMES[winner] if votes[winner] >= _CLEAR * len(indices) else None


def _without_rim(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask less two pixels all around: blends along the outline do not vote."""
    for _ in range(2):
        padded = np.pad(mask, 1)
        mask = (
            padded[1:-1, 1:-1]
            & padded[:-2, 1:-1]
            & padded[2:, 1:-1]
            & padded[1:-1, :-2]
            & padded[1:-1, 2:]
        )
    return mask
