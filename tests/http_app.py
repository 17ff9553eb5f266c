"""An HTTP application of ours on a port of its own, in a thread; and clients that misbehave."""

import json
import socket
import threading
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Self

import httpx
import uvicorn
from fastapi import FastAPI

from api import ingress
from api.edge import Edge, EdgeSettings
from api.layers import add_checks
from sdserve.apps import AppSpec
from tests.values import JOB_TTL
from tests.waiting import LIMIT, until

GENERATE = "/v1/generate"
PROMPT = {"prompt": "a red circle on a blue background"}


def edge_settings(redis_url: str, **changes: Any) -> EdgeSettings:
    fields: dict[str, Any] = {
        "redis_url": redis_url,
        "job_ttl": JOB_TTL,
        "sync_wait": timedelta(seconds=60),
    }
    return EdgeSettings(**{**fields, **changes})


def one_app(spec: AppSpec, settings: EdgeSettings) -> FastAPI:
    """The routes of one app at the root, as the gateway serves them under its name."""
    edge = Edge(settings)
    app = ingress.create_app(spec, edge)
    add_checks(app, edge)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[None]:
        async with edge.running():
            yield

    app.router.lifespan_context = lifespan
    return app


class HttpApp:
    """Serves `app` while it is entered."""

    def __init__(self, app: FastAPI, port: int = 0) -> None:
        self.app = app
        self._socket = socket.create_server(("127.0.0.1", port), backlog=4096)
        config = uvicorn.Config(app, log_level="critical", ws="none", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), daemon=True
        )
        self.port: int = self._socket.getsockname()[1]
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", timeout=LIMIT, trust_env=False
        )

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self._server.started or not self._thread.is_alive())
        assert self._thread.is_alive()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self._server.should_exit = True
        self._thread.join(LIMIT)
        self._socket.close()

    def generate(self, headers: Mapping[str, str] | None = None) -> httpx.Response:
        return self.http.post(GENERATE, json=PROMPT, headers=headers)

    def call(self, head: str, body: bytes = b"") -> socket.socket:
        """A connection on which this request was sent and nothing was read yet."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT)
        client.sendall((head.replace("\n", "\r\n") + "\r\n\r\n").encode())
        client.sendall(body)
        return client

    def call_generate(self, *headers: str) -> socket.socket:
        body = json.dumps(PROMPT).encode()
        lines = [
            f"POST {GENERATE} HTTP/1.1",
            "Host: localhost",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *headers,
        ]
        return self.call("\n".join(lines), body)


def answer(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (names in lower case) and body of the answer on `client`."""
    with client.makefile("rb") as stream:
        status = int(stream.readline().split()[1])
        headers = dict[str, str]()
        while line := stream.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, stream.read(int(headers["content-length"]))
