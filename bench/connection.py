"""One HTTP/1.1 connection of a load generator: as little work per request as can be."""

import asyncio
from dataclasses import dataclass
from typing import Self, cast
from urllib.parse import urlsplit


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is sent, as bytes: made before the run, so that sending it costs nothing."""

    data: bytes

    @classmethod
    def make(
        cls, method: str, path: str, *, body: bytes = b"", headers: tuple[str, ...] = ()
    ) -> Self:
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *headers]
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return cls(data=("\r\n".join(lines) + "\r\n\r\n").encode() + body)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Of it what a benchmark looks at."""

    status: int
    body: bytes


class Connection(asyncio.Protocol):
    """Keep-alive, one request at a time; answers must have a Content-Length."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._data = bytearray()
        self._answer: asyncio.Future[Answer] | None = None

    @classmethod
    async def open(cls, url: str) -> Self:
        """Raises OSError: nobody listens."""
        address = urlsplit(url)
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            cls, address.hostname or "", address.port or 80
        )
        return connection

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, request: Request) -> asyncio.Future[Answer]:
        """Send at once; the answer raises ConnectionError when the connection is lost."""
        self._answer = asyncio.get_running_loop().create_future()
        if self._transport is None or self._transport.is_closing():
            self._answer.set_exception(ConnectionResetError("closed before it was asked"))
        else:
            self._transport.write(request.data)
        return self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, mark, rest = bytes(self._data).partition(b"\r\n\r\n")
        if not mark:
            return
        first, *lines = head.lower().split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines)
        length = int(headers[b"content-length"])
        if len(rest) < length:
            return
        self._data = bytearray(rest[length:])
        if headers.get(b"connection") == b"close" and self._transport is not None:
            self._transport.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Answer(status=int(first.split()[1]), body=rest[:length]))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("lost before it was answered"))
