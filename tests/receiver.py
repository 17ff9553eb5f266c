"""A receiver of webhooks on a port of its own, with a mind of its own."""

import hmac
import http.server
import socket
import ssl
import struct
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from typing import Self


@dataclass(frozen=True, kw_only=True)
class Received:
    """A request that came in whole."""

    path: str
    headers: Message
    body: bytes

    @property
    def event(self) -> str:
        return self.headers["webhook-id"]


class Exchange:
    """One request, to be answered."""

    def __init__(self, handler: "_Handler") -> None:
        self._handler = handler

    @property
    def connection(self) -> socket.socket:
        return self._handler.connection

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self._handler.send_response(status)
        for name, value in headers.items():
            self._handler.send_header(name.replace("_", "-"), value)
        self._handler.send_header("Content-Length", str(len(body)))
        self._handler.end_headers()
        self._handler.wfile.write(body)

    def reset(self) -> None:
        """Cut the connection off, as a crash does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._handler.close_connection = True
        self.connection.close()


Mind = Callable[[Received, Exchange], None]


def friendly(_request: Received, exchange: Exchange) -> None:
    exchange.answer(204)


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = Received(path=self.path, headers=self.headers, body=body)
        assert isinstance(self.server, _Server)
        owner = self.server.owner
        owner.received.append(request)
        owner.mind(request, Exchange(self))

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002 (http.server's name)
        """Nothing: pytest shows what failed."""


class _Server(http.server.ThreadingHTTPServer):
    owner: "Receiver"
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A sender may hang up at any time."""


class Receiver:
    """Listens on loopback from `with` on. What it does with a request is `mind`."""

    def __init__(self, mind: Mind = friendly, tls: ssl.SSLContext | None = None) -> None:
        self.mind = mind
        self.received = list[Received]()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def is_signed(request: Received, secret: str) -> bool:
    """As the documentation tells a receiver to check."""
    signed = f"{request.event}.{request.headers['webhook-timestamp']}.".encode() + request.body
    digest = hmac.digest(b64decode(secret.removeprefix("whsec_")), signed, "sha256")
    given = request.headers["webhook-signature"].split()
    return f"v1,{b64encode(digest).decode()}" in given
