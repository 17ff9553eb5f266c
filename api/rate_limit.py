"""How often one client may ask: a sliding window in Redis, by the library `limits`.

Its windows are the times to live of two counters, so Redis' clock rules them, not ours.
"""

import math
import time
from typing import Any

from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from api.allowances import Allowance
from sdserve import keys
from sdserve.async_store import AsyncJobStore
from sdserve.limits import Rate


class RateLimiter:
    """Counts requests on the connections of `store`."""

    def __init__(self, store: AsyncJobStore, connection_pool: Any) -> None:
        self._store = store
        # The address only says whose protocol it is: the connections are ours.
        storage = RedisStorage(
            "async+redis://",
            implementation="redispy",
            key_prefix=keys.RATE,
            connection_pool=connection_pool,
        )
        self._limiter = SlidingWindowCounterRateLimiter(storage)

    async def count(self, client: str, rate: Rate) -> tuple[Allowance, bool]:
        """Count a request of this client. What it has left, and whether this one was within.

        Raises:
            StoreUnavailableError: so nobody is let in uncounted.
        """
        item = RateLimitItemPerSecond(rate.requests, rate.seconds)

        async def hit_and_look() -> tuple[bool, float, int]:
            is_within = await self._limiter.hit(item, client)
            window = await self._limiter.get_window_stats(item, client)
            return is_within, window.reset_time, window.remaining

        is_within, reset_time, remaining = await self._store.ask(hit_and_look)
        allowance = Allowance(
            name="requests",
            quota=rate.requests,
            remaining=remaining if is_within else 0,
            window=rate.seconds,
            reset=max(1, math.ceil(reset_time - time.time())),
        )
        return allowance, is_within
