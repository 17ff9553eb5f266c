"""Waiting for what must happen, on a loaded machine."""

import time
from collections.abc import Callable

LIMIT = 120  # seconds


def until(condition: Callable[[], object], *, limit: float = LIMIT) -> None:
    """Return once `condition` holds; fail when it does not within `limit` seconds."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
