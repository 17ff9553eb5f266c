"""A webhook receiver that is not to be relied on: real HTTP, errors and broken connections."""

import base64
import hashlib
import hmac
import json
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One event as it was taken; its signature was right."""

    id: str  # the header `webhook-id`
    body: dict[str, Any]


@dataclass(kw_only=True)
class Receiver:
    """Takes each event in the end, after up to `most_failures` other answers.

    Signatures are those of Standard Webhooks
    (github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md).
    """

    secret: str  # "whsec_..."
    seed: int
    most_failures: int = 2
    taken: list[Delivery] = field(default_factory=list[Delivery])
    forged: int = 0  # requests whose signature was wrong
    failures: int = 0  # requests that were answered badly, or not at all

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._random = Random(self.seed)
        self._left: defaultdict[str, int] = defaultdict(
            lambda: self._random.randint(0, self.most_failures)
        )
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if not receiver.is_signed(dict(self.headers.items()), body):
                    self.send_error(401)
                    return
                status = receiver.take(self.headers["webhook-id"], body)
                if status:  # else hung up on
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (its name there)
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/hook"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def is_signed(self, headers: dict[str, str], body: bytes) -> bool:
        """Whether one of the signatures is that of our secret."""
        sent = {name.lower(): value for name, value in headers.items()}
        key = base64.b64decode(self.secret.removeprefix("whsec_"))
        signed = f"{sent['webhook-id']}.{sent['webhook-timestamp']}.".encode() + body
        digest = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        is_right = f"v1,{digest}" in sent["webhook-signature"].split()
        with self._lock:
            self.forged += not is_right
        return is_right

    def take(self, event_id: str, body: bytes) -> int | None:
        """The status to answer; None: hang up."""
        with self._lock:
            if self._left[event_id]:
                self._left[event_id] -= 1
                self.failures += 1
                return self._random.choice([500, 429, None])
            self.taken.append(Delivery(id=event_id, body=json.loads(body)))
            return self._random.choice([200, 204])
