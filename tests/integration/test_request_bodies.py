"""Bodies that are too large, too slow or too strange are refused cleanly."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from redis import Redis

from tests.http_app import GENERATE, PROMPT, HttpApp, answer, edge_settings, one_app
from tests.values import spec

pytestmark = pytest.mark.integration

LIMIT = 64 * 1024
HEAD = f"POST {GENERATE} HTTP/1.1\nHost: localhost\nContent-Type: application/json\n"


@pytest.fixture
def app(redis_url: str, redis: Redis) -> Iterator[HttpApp]:
    settings = edge_settings(redis_url, max_body_bytes=LIMIT, body_timeout=timedelta(seconds=1))
    with HttpApp(one_app(spec(), settings)) as one:
        yield one


def is_problem(reply: tuple[int, dict[str, str], bytes], status: int, code: str) -> dict[str, Any]:
    found, headers, body = reply
    assert found == status, body
    assert headers["content-type"] == "application/problem+json"
    problem = json.loads(body)
    assert problem["type"] == f"urn:sdserve:problem:{code}"
    assert len(body) < 10_000
    return problem


def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(app: HttpApp) -> None:
    with app.call(f"{HEAD}Content-Length: {LIMIT + 1}") as client:
        problem = is_problem(answer(client), 413, "body_too_large")
        assert str(LIMIT) in problem["detail"]


def test_a_body_that_does_not_say_is_refused_once_it_is_too_large(app: HttpApp) -> None:
    chunk = b"1000\r\n" + b"x" * 0x1000 + b"\r\n"
    with app.call(f"{HEAD}Transfer-Encoding: chunked", chunk * 17) as client:  # it never ends
        is_problem(answer(client), 413, "body_too_large")


def test_a_body_at_the_limit_is_read(app: HttpApp) -> None:
    body = json.dumps(PROMPT).encode().ljust(LIMIT)
    headers = {"Content-Type": "application/json"}
    assert app.http.post(GENERATE, content=body, headers=headers).status_code == 202
    pieces = (body[k : k + 1000] for k in range(0, LIMIT, 1000))
    assert app.http.post(GENERATE, content=pieces, headers=headers).status_code == 202


@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_a_body_that_comes_too_slowly_is_not_waited_for(app: HttpApp, framing: str) -> None:
    with app.call(f"{HEAD}{framing}", b"1\r\n{\r\n") as client:
        reply = answer(client)
        is_problem(reply, 408, "body_timeout")
        assert reply[1]["connection"] == "close"
        assert client.recv(1) == b""


def test_a_client_that_leaves_in_its_body_disturbs_nobody(app: HttpApp) -> None:
    app.call(f"{HEAD}Content-Length: 1000", b"{").close()
    assert app.generate().status_code == 202


@pytest.mark.parametrize(
    "body",
    [
        b"[" * LIMIT,
        b'{"prompt":' * 6000,
        b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"prompt": "' + b"x" * 60_000 + b'"}',
        b'{"prompt": "x", "' + b"y" * 60_000 + b'": 1}',
        json.dumps({**PROMPT, **{f"f{k}": k for k in range(4000)}}).encode(),
        b'{"prompt": "x", "seed": ' + b"9" * 60_000 + b"}",
        b'{"prompt": "x", "guidance_scale": NaN}',
        b'{"prompt": "x", "guidance_scale": 1e999}',
        rb'{"prompt": "\ud800"}',
        b'{"prompt": "\xff"}',
    ],
    ids=lambda body: body[:20].decode(errors="replace") + f"...{len(body)}",
)
def test_strange_json_is_a_short_problem(app: HttpApp, body: bytes) -> None:
    with app.call(f"{HEAD}Content-Length: {len(body)}", body) as client:
        is_problem(answer(client), 422, "invalid_request")
