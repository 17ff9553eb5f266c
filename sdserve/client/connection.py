"""What all calls share: the server's address, our key, and trying again. Programs, no I/O."""

from collections.abc import Callable
from datetime import timedelta

import httpx

from sdserve.client.effects import Lost, Program, Request, Sleep
from sdserve.client.errors import ClientError, InvalidUrlError, ServerAwayError
from sdserve.client.retry import Retry, refusal, retry_after

ANSWER_MARGIN = 30.0  # seconds beyond the wait that was asked for, before a call counts as lost


class Connection:
    """Where the server is, who we are to it, and how long it is waited for."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        patience: timedelta,
        waiting: Callable[[str], None] | None,
        clock: Callable[[], float],
    ) -> None:
        """Check the address; nothing is sent.

        Args:
            url: address of the server, e.g. "http://127.0.0.1:8000".
            api_key: sent as a Bearer token (RFC 6750) when given.
            patience: how long one call keeps trying; zero = one try.
            waiting: is told why a call is about to be tried again.
            clock: seconds of any steady clock.

        Raises:
            InvalidUrlError: `url` is not an http(s) URL.
        """
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise InvalidUrlError(url) from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise InvalidUrlError(url)
        self.url = url.rstrip("/")
        # A proxy of the environment is meant for other hosts, never for this machine.
        self.is_local = parsed.host in ("127.0.0.1", "localhost", "::1")
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.clock = clock
        self._patience = patience
        self._waiting = waiting

    def retry(self) -> Retry:
        return Retry(self._patience)

    def send(self, request: Request, retry: Retry | None = None) -> Program[httpx.Response]:
        """A success answer, whatever it takes within the patience.

        Args:
            request: safe to send again: it changes nothing, or carries an idempotency key.
            retry: goes on with the tries of a call of several requests.

        Raises:
            ApiError: refused.
            ServerAwayError: nobody answered.
        """
        retry = retry or self.retry()
        while True:
            reply: httpx.Response | Lost = yield request
            if isinstance(reply, Lost):
                yield from self.lost(retry, reply)
            elif reply.is_success:
                retry.succeeded()
                return reply
            else:
                refused = refusal(reply)
                if not refused.is_temporary:
                    raise refused
                yield from self._pause(retry, refused, str(refused), retry_after(reply))

    def lost(self, retry: Retry, lost: Lost, pause: float | None = None) -> Program[None]:
        """Wait for the next try after a lost connection: `pause` seconds, or growing ones.

        Raises:
            ServerAwayError: the patience has run out.
        """
        error = ServerAwayError(self.url, self._patience, lost.reason)
        error.__cause__ = lost.error
        yield from self._pause(retry, error, f"{self.url} does not answer ({lost.reason})", pause)

    def _pause(
        self, retry: Retry, failure: ClientError, why: str, wished: float | None
    ) -> Program[None]:
        seconds = retry.pause(self.clock(), wished)
        if seconds is None:
            raise failure
        if self._waiting:
            self._waiting(why)
        yield Sleep(seconds=seconds)
