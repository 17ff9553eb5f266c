"""Ways to do the same, by turns: seconds by blocks, and what they say."""

import time
from collections.abc import Callable, Mapping
from itertools import count

from bench.gpu.subject import Subject
from bench.statistics import Estimate, abba, bootstrap_ratio

Blocks = list[list[float]]  # seconds, of each block


def take_turns(subject: Subject, ways: Mapping[str, Callable[[int], object]]) -> dict[str, Blocks]:
    """Seconds of each way, by blocks, until the device is done; each is warmed first.

    A way gets the number of its turn: the same for all ways, so that all draw the same, and never
    the same again, so that what ours keeps of a prompt does not help it.
    """
    for work in ways.values():
        work(0)
    seconds: dict[str, Blocks] = {way: [] for way in ways}
    numbers = {way: count(1) for way in ways}
    for turns in abba(list(ways), subject.plan.blocks):
        for way in ways:
            seconds[way].append([])
        for way in turns:
            subject.wait()
            start = time.perf_counter()
            ways[way](next(numbers[way]))
            subject.wait()
            seconds[way][-1].append(time.perf_counter() - start)
    return seconds


def drift(blocks: Blocks) -> Estimate:
    """The control: a way's first turn of each block by its last."""
    return bootstrap_ratio([block[:1] for block in blocks], [block[-1:] for block in blocks])


def absolute(blocks: Blocks) -> Estimate:
    """Seconds with their interval: the ratio to one second."""
    return bootstrap_ratio(blocks, [[1.0]] * len(blocks))
