"""A synchronous request of which nothing is read yet while its job runs; and its repetition."""

import socket
import time
from typing import Any

import httpx

from tests.acceptance.server import LIMIT, Server

LONG: dict[str, Any] = {"prompt": "anything", "num_inference_steps": 150, "num_images": 4}


def begin(server: Server, app: str, **headers: str) -> socket.socket:
    """A connection on which a long job was asked for, which runs; nothing was read yet."""
    request = httpx.Request("POST", f"{server.url}/{app}/v1/generate", json=LONG, headers=headers)
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    client = socket.create_connection((request.url.host, request.url.port or 80), LIMIT)
    client.sendall(f"POST {request.url.path} HTTP/1.1\r\n{head}\r\n".encode() + request.content)
    server.until(app, lambda health: health["running"] == 1)
    return client


def retry(server: Server, app: str, **headers: str) -> str:
    """The id of the job, once the server answers again."""
    deadline = time.monotonic() + LIMIT
    while True:
        assert time.monotonic() < deadline
        try:
            answer = server.generate(app, **LONG, headers=headers)
        except httpx.TransportError:
            time.sleep(0.2)
            continue
        if answer.status_code in (200, 202):
            return answer.headers["X-Job-Id"]
        time.sleep(0.2)


def hang_up_frees_the_slot(server: Server, app: str) -> None:
    """Unless the client can come back, the job ends with his connection, not by itself."""
    server.warm(app)
    begin(server, app, **{"Idempotency-Key": "hung up"}).close()
    job = server.finished(retry(server, app, **{"Idempotency-Key": "hung up"}))
    assert (job["status"], job["attempt"]) == ("succeeded", 1)

    begin(server, app).close()
    start = time.monotonic()
    assert server.until(app, lambda health: health["running"] == 0)["queued"] == 0
    assert time.monotonic() - start < job["compute_metrics"]["denoise_seconds"] / 2
