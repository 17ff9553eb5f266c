"""How many replicas an app wants. Pure: the caller brings the clock and the app's status."""

import math
from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta

from sdserve.apps import AppStatus


@dataclass(kw_only=True)
class Demand:
    """The demand of one app over the last idle time-out.

    Wanted is the largest need in that window: an app goes up with the first job, and down (to
    `min_replicas`) only when `idle_timeout` has passed without work that needed more.
    """

    min_replicas: int
    max_replicas: int
    idle_timeout: timedelta
    _needs: deque[tuple[float, int]] = field(init=False, default_factory=deque[tuple[float, int]])

    def wanted(self, status: AppStatus, current: int, now: float) -> int:
        """Replicas wanted at `now` (monotonic seconds) by an app that has `current` of them."""
        if status.broken_reason is not None:
            self._needs.clear()
            return 0
        if not self._needs:
            # A restarted controller must not take the absence of history for idleness.
            self._note(now, current)
        # What a replica has found to pay holds for the next one too.
        slots = max((replica.slots for replica in status.replicas), default=1)
        self._note(now, math.ceil((status.queued + status.running) / slots))
        if status.wished:
            self._note(now, 1)
        # The newest entry is always inside the window, so the deque never runs empty here.
        while self._needs[0][0] < now - self.idle_timeout.total_seconds():
            self._needs.popleft()
        return min(self.max_replicas, max(self.min_replicas, self._needs[0][1]))

    def forget(self) -> None:
        """End the idle time-out now: another app needs the place."""
        self._needs.clear()
        self._needs.append((-math.inf, 0))

    def _note(self, now: float, need: int) -> None:
        # Kept decreasing in need: only the newest of equal or smaller needs can matter later.
        while self._needs and self._needs[-1][1] <= need:
            self._needs.pop()
        self._needs.append((now, need))


def evict(waiting: dict[str, float], idle: dict[str, float]) -> str | None:
    """The idle app that gives up its replica: the least recently used, if anybody waits.

    Args:
        waiting: apps with work and without a place, and since when.
        idle: apps with a replica and without work, and when each was last busy.
    """
    if not waiting or not idle:
        return None
    return min(idle, key=lambda app: idle[app])
