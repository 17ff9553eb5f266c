"""A job store that tells of every look at a job."""

import asyncio
from collections.abc import Sequence
from typing import Any, Self

from sdserve.async_store import AsyncJobStore, connect_async
from sdserve.operations import Operation


class LookedAtStore(AsyncJobStore):
    """The Redis at this URL, while it is entered."""

    def __init__(self, redis_url: str) -> None:
        self._own = connect_async(redis_url)
        super().__init__(self._own)
        self.looks = asyncio.Queue[Any]()  # what each came to; None: an error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._own.aclose()

    async def run(self, operation: Operation[Any]) -> Any:
        found = None
        try:
            found = await super().run(operation)
        finally:
            self.looks.put_nowait(found)
        return found

    async def run_all(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        found: list[Any] = []
        try:
            found = await super().run_all(operations)
        finally:
            for each in found or [None]:
                self.looks.put_nowait(each)
        return found
