"""Bodies that are too large or come too slowly are refused before anything parses them. ASGI.

FastAPI's own `max_body_size` would do for the first, in plain words of its own; it knows no clock.
"""

import asyncio
from collections.abc import Collection, Iterator
from datetime import timedelta

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.hang_up import ClientGoneError
from api.problems import problem


class BodyLimit:
    """Reads the body of a request ahead of `app`: at most `max_bytes`, within `patience`."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_bytes: int,
        patience: timedelta,
        streaming: Collection[str] = (),
    ) -> None:
        """Wrap `app`; the routes `streaming` read their own bodies and have limits of their own."""
        self._app = app
        self._streaming = frozenset(streaming)
        self._max_bytes = max_bytes
        self._patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        # Without either header a request has no body (RFC 9112, section 6.3): nothing to read.
        has_body = "content-length" in headers or "transfer-encoding" in headers
        if not has_body or scope["path"] in self._streaming:
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._patience.total_seconds()):
                body = await self._read(headers, receive)
        except TimeoutError:
            detail = (
                f"The body did not arrive within {self._patience.total_seconds():g} s: "
                "send it at once, over a faster connection."
            )
            # Closed: whatever still comes would be taken for the next request.
            refusal = problem(408, "body_timeout", detail, headers={"Connection": "close"})
            await refusal(scope, receive, send)
            return
        except ClientGoneError:
            return
        if body is None:
            detail = (
                f"The body is larger than {self._max_bytes} bytes: send less, "
                "or have SD_MAX_BODY_BYTES raised."
            )
            await problem(413, "body_too_large", detail)(scope, receive, send)
            return
        ahead: Iterator[Message] = iter([{"type": "http.request", "body": body}])

        async def receive_again() -> Message:
            return next(ahead, None) or await receive()

        await self._app(scope, receive_again, send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """The body, or None when it is too large: by its own word, or as it comes."""
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_bytes:
            return None
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                return None
            more = message.get("more_body", False)
        return bytes(body)
