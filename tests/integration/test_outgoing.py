"""Requests to addresses that clients name: real sockets, and name servers that lie."""

import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from itertools import cycle
from pathlib import Path

import pytest

from sdserve.errors import InvalidParameterError
from sdserve.webhook_targets import WebhookTargets
from tests.certificate import tls_contexts
from tests.receiver import Exchange, Received, Receiver
from workers.outgoing import BODY_LIMIT, DeliveryError, Sender, TargetRefusedError

pytestmark = pytest.mark.integration

LOOPBACK = WebhookTargets.parse("127.0.0.0/8")
LIMIT = timedelta(seconds=1)


def sender(targets: WebhookTargets = LOOPBACK, *addresses: str) -> Sender:
    """Its name server knows one answer."""
    return Sender(
        targets=targets, resolve=lambda _host, _port: addresses or ("127.0.0.1",), time_limit=LIMIT
    )


def test_a_post_arrives_as_it_was_given() -> None:
    with Receiver() as receiver:
        answer = sender().post(receiver.url + "?a=b%20c", b"body", {"webhook-id": "x"})
    assert answer.status == 204
    (request,) = receiver.received
    assert (request.path, request.body, request.event) == ("/hook?a=b%20c", b"body", "x")
    assert request.headers["Host"] == f"127.0.0.1:{receiver.port}"


def test_tls_is_for_the_name_though_the_connection_is_to_the_address(tmp_path: Path) -> None:
    server, client = tls_contexts("receiver.example", tmp_path)
    names = list[str | None]()
    server.sni_callback = lambda _socket, name, _context: names.append(name)
    with Receiver(tls=server) as receiver:
        secure = Sender(targets=LOOPBACK, resolve=lambda _host, _port: ["127.0.0.1"], tls=client)
        url = f"https://receiver.example:{receiver.port}/"
        assert secure.post(url, b"", {}).status == 204
        assert names == ["receiver.example"]
        assert receiver.received[0].headers["Host"] == f"receiver.example:{receiver.port}"
        with pytest.raises(DeliveryError, match="certificate"):
            secure.post(url.replace("receiver.", "other."), b"", {})
    assert len(receiver.received) == 1


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1",
     "2002:7f00:1::", "fe80::1%lo", "0.0.0.0"],  # noqa: S104 (nothing is bound)
)  # fmt: skip
def test_a_name_that_leads_inside_is_not_connected_to(address: str) -> None:
    with Receiver() as receiver:
        inside = sender(WebhookTargets(), address)
        with pytest.raises(TargetRefusedError, match="not on the internet"):
            inside.post(f"https://innocent.example:{receiver.port}/", b"", {})
    assert receiver.received == []


def test_one_address_inside_spoils_a_name() -> None:
    mixed = sender(WebhookTargets(), "192.0.1.1", "127.0.0.1")
    with pytest.raises(TargetRefusedError):
        mixed.post("https://innocent.example:8443/", b"", {})


def test_a_name_is_resolved_once() -> None:
    """DNS rebinding: good when it is judged, loopback when it is connected to."""
    answers, asked = cycle([["192.0.2.1"], ["127.0.0.1"]]), list[str]()

    def resolve(host: str, _port: int) -> list[str]:
        asked.append(host)
        return next(answers)

    with Receiver() as receiver:
        # 192.0.2.1 is nobody (RFC 5737): allowed here, and never answers.
        rebound = Sender(
            targets=WebhookTargets.parse("192.0.2.0/24"), resolve=resolve, time_limit=LIMIT
        )
        with pytest.raises(DeliveryError):
            rebound.post(f"https://rebind.example:{receiver.port}/", b"", {})
    assert asked == ["rebind.example"]
    assert receiver.received == []


def test_redirects_are_not_followed() -> None:
    with Receiver() as inside:

        def redirect(_request: Received, exchange: Exchange) -> None:
            exchange.answer(307, Location=inside.url)

        with Receiver(redirect) as receiver:
            assert sender().post(receiver.url, b"", {}).status == 307
    assert inside.received == []


@pytest.mark.parametrize("url", ["http://2130706433/", "http://user@127.0.0.1/", "http://x.y/"])
def test_a_url_is_judged_again_before_it_is_used(url: str) -> None:
    with pytest.raises(InvalidParameterError):
        sender().post(url, b"", {})


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as proxy, Receiver() as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert sender().post(receiver.url, b"", {}).status == 204
    assert proxy.received == []


def test_who_says_nothing_is_waited_for_no_longer_than_the_limit() -> None:
    done = threading.Event()

    def say_nothing(_request: Received, _exchange: Exchange) -> None:
        done.wait(60)

    with Receiver(say_nothing) as receiver:
        assert _takes(lambda: _fails(receiver.url, "no answer within 1 s"))
        done.set()


@pytest.mark.parametrize("pieces", [b"HTTP/1.1 200 OK\r\n", b"H"], ids=["headers", "bytes"])
def test_a_slow_drip_is_cut_at_the_limit(pieces: bytes) -> None:
    with dripping(pieces, b"X: y\r\n" if len(pieces) > 1 else b"T") as url:
        assert _takes(lambda: _fails(url, "no answer within 1 s"))


def test_a_body_that_drips_or_never_ends_does_not_change_the_answer() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"
    with dripping(head, b"x") as url:
        assert _takes(lambda: _answers(url, 200))
    with dripping(head, b"x" * BODY_LIMIT, pause=0.0) as url:
        assert _takes(lambda: _answers(url, 200))


def test_headers_without_end_are_cut() -> None:
    with dripping(b"HTTP/1.1 200 OK\r\n", b"X: " + b"y" * 10_000 + b"\r\n", pause=0.0) as url:
        assert _takes(lambda: _fails(url, "no answer"))


def test_what_is_no_http_is_no_answer() -> None:
    with dripping(b"SSH-2.0-OpenSSH_9.2\r\n", b"") as url:
        _fails(url, "no answer")


def test_a_name_server_that_hangs_is_cut_at_the_limit() -> None:
    done = threading.Event()

    def resolve(_host: str, _port: int) -> list[str]:
        done.wait(60)
        return []

    hanging = Sender(targets=LOOPBACK, resolve=resolve, time_limit=LIMIT)

    def post() -> None:
        with pytest.raises(DeliveryError, match="no answer within"):
            hanging.post("https://slow.example/", b"", {})

    assert _takes(post)
    done.set()


def test_a_name_that_does_not_exist_is_told() -> None:
    def resolve(_host: str, _port: int) -> list[str]:
        raise socket.gaierror("unknown")

    with pytest.raises(DeliveryError, match=r"gone\.example cannot be resolved"):
        Sender(targets=LOOPBACK, resolve=resolve).post("https://gone.example/", b"", {})


def test_the_next_address_is_tried_when_one_refuses() -> None:
    with Receiver() as receiver:
        url = f"http://both.example:{receiver.port}/"
        both = WebhookTargets.parse("both.example")
        assert sender(both, "127.0.0.2", "127.0.0.1").post(url, b"", {}).status == 204


def _fails(url: str, reason: str) -> None:
    with pytest.raises(DeliveryError, match=reason):
        sender().post(url, b"{}", {})


def _answers(url: str, status: int) -> None:
    assert sender().post(url, b"{}", {}).status == status


def _takes(work: Callable[[], None], limit: float = 10.0) -> bool:
    """Whether it is done in time; without the time limit it would take a minute."""
    started = time.monotonic()
    work()
    return time.monotonic() - started < limit


@contextmanager
def dripping(first: bytes, again: bytes, pause: float = 0.1) -> Generator[str]:
    """A server that reads a request, says `first`, then `again` for a minute."""
    server = socket.create_server(("127.0.0.1", 0))
    stopped = threading.Event()

    def serve() -> None:
        client, _ = server.accept()
        with client:
            client.recv(65536)
            deadline = time.monotonic() + 60
            try:
                client.sendall(first)
                while again and time.monotonic() < deadline and not stopped.wait(pause):
                    client.sendall(again)
            except OSError:  # it has been cut off, as it should be
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
    finally:
        stopped.set()
        thread.join()
        server.close()
