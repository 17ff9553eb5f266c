"""Requests that are held open: streams, long polls, uploads, downloads. How many a client may have.

Of one process. A place that is held is one of those that Serve's proxy gives to a process, so who
could take them all would shut out the others, and health checks.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager

from fastapi import Depends, Request

from api.caller import KnownCaller
from api.preferences import LongPoll
from sdserve.errors import ServerFullError, TooManyHeldError

RETRY = 5  # seconds


class HeldRequests:
    """Those of all clients."""

    def __init__(self, *, most: int, most_of_client: int) -> None:
        self._most = most
        self._most_of_client = most_of_client
        self._held = Counter[str]()

    @property
    def count(self) -> int:
        """How many are held now."""
        return self._held.total()

    def has_room(self, client: str) -> bool:
        """Whether a request of this client can be held."""
        try:
            self._check(client)
        except (ServerFullError, TooManyHeldError):
            return False
        return True

    @contextmanager
    def place(self, client: str) -> Generator[None]:
        """Hold a request of this client; "" is anybody without a key: only `most` bounds him.

        Raises:
            TooManyHeldError: he has as many as one client may have.
            ServerFullError: all clients together have.
        """
        self._check(client)
        self._held[client] += 1
        try:
            yield
        finally:
            self._held[client] -= 1
            if not self._held[client]:
                del self._held[client]

    def _check(self, client: str) -> None:
        own = self._held.get(client, 0)
        if client and own >= self._most_of_client:
            message = f"You have {own} requests that are held open (streams, long polls), the limit"
            raise TooManyHeldError(message, RETRY)
        if self.count >= self._most:
            raise ServerFullError(
                f"The server is full ({self.count} requests are held open)", RETRY
            )


async def _hold(request: Request, caller: KnownCaller) -> AsyncGenerator[None]:
    held: HeldRequests = request.app.state.held
    with held.place(caller.client):
        yield  # until the whole answer is sent


async def _hold_poll(
    request: Request, caller: KnownCaller, wait: LongPoll = 0
) -> AsyncGenerator[None]:
    """A poll without a wait is answered at once."""
    if not wait:
        yield
        return
    held: HeldRequests = request.app.state.held
    with held.place(caller.client):
        yield


HOLDS = Depends(_hold)
HOLDS_POLL = Depends(_hold_poll)
