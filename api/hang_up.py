"""A client that hangs up while it is waited for."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

Outcome = TypeVar("Outcome")

CLIENT_GONE = 499  # nobody reads it; access logs know it by this number


class ClientGoneError(Exception):
    """Nobody is there to hear the answer."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Outcome]) -> Outcome:
    """The outcome of `work`, which is given up when the client hangs up.

    `receive` is that of a request whose body has been read.

    Raises:
        ClientGoneError: it hung up.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_leave(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        # Serve's proxy tells it by an error too: however listening ends, nobody hears us any more.
        raise ClientGoneError from leaving.exception()
    finally:
        working.cancel()
        leaving.cancel()


async def _leave(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
