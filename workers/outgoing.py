"""Requests to addresses that clients name: what they can reach, and how long, is limited.

A name is resolved once, every address it has is judged, and the connection goes to the very address
that was judged: a name server that answers differently the next time changes nothing. There are no
redirects, no proxies and no cookies, for httpcore knows none of them.
"""

import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import httpcore
import httpx

from sdserve.errors import SdServeError
from sdserve.webhook_targets import Address, WebhookTargets

TIME_LIMIT = timedelta(seconds=10)  # from the first look at the name to the last byte
BODY_LIMIT = 64 * 1024  # bytes of an answer that are read

Resolve = Callable[[str, int], Sequence[str]]  # host and port -> addresses; blocks


class DeliveryError(SdServeError):
    """There was no answer."""

    code = "delivery_failed"


class TargetRefusedError(DeliveryError):
    """The name has an address that we do not connect to."""

    code = "target_refused"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a receiver said, without its body."""

    status: int
    retry_after: str | None  # the header


def system_resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, as this machine finds them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(place[0]) for *_, place in found]


@dataclass(frozen=True, kw_only=True)
class Sender:
    """Posts to receivers that `targets` permit."""

    targets: WebhookTargets
    resolve: Resolve = system_resolve
    tls: ssl.SSLContext | None = None  # None: the authorities of certifi, or SSL_CERT_FILE
    time_limit: timedelta = TIME_LIMIT

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Post once.

        Raises:
            InvalidParameterError, TargetRefusedError: nothing is sent there.
            DeliveryError: no answer, or not in time.
        """
        target = self.targets.check(url)
        deadline = Deadline.after(self.time_limit)
        backend = JudgingBackend(self.targets, self.resolve, deadline)
        # Not the text again: two parsers may see two hosts in it.
        place = httpcore.URL(
            scheme=target.raw_scheme,
            host=target.raw_host,
            port=target.port,
            target=target.raw_path,
        )
        told = [(b"Host", target.netloc), (b"Connection", b"close")]
        told += [(name.encode(), value.encode()) for name, value in headers.items()]
        is_secure = target.scheme == "https"  # reading the authorities takes a while
        tls = self.tls or (httpx.create_ssl_context() if is_secure else None)
        with httpcore.ConnectionPool(ssl_context=tls, network_backend=backend) as pool:
            try:
                with pool.stream("POST", place, headers=told, content=body) as response:
                    _drain(response)
            except httpcore.TimeoutException as error:
                seconds = self.time_limit.total_seconds()
                raise DeliveryError(f"no answer within {seconds:g} s") from error
            except (httpcore.NetworkError, httpcore.ProtocolError) as error:
                raise DeliveryError(f"no answer: {error}" if str(error) else "no answer") from error
        named = {name.lower(): value for name, value in response.headers}
        retry_after = named.get(b"retry-after")
        return Answer(
            status=response.status,
            retry_after=retry_after.decode("latin-1") if retry_after else None,
        )


def _drain(response: httpcore.Response) -> None:
    """Read what comes, within the limits: a receiver that is cut off may call that a failure."""
    left = BODY_LIMIT
    try:
        for part in response.iter_stream():
            left -= len(part)
            if left < 0:
                return
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError):
        return  # what it thinks of the webhook is in the status, which we have


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """A moment after which nothing goes on."""

    at: float  # by time.monotonic

    @classmethod
    def after(cls, span: timedelta) -> "Deadline":
        return cls(at=time.monotonic() + span.total_seconds())

    def left(self, late: type[httpcore.TimeoutException], timeout: float | None = None) -> float:
        """Seconds until then, at most `timeout`.

        Raises:
            late: there are none.
        """
        left = self.at - time.monotonic()
        if left <= 0:
            raise late("the time is over")
        return left if timeout is None else min(left, timeout)


class JudgingBackend(httpcore.NetworkBackend):
    """Connects to addresses that were judged, with one deadline for all that happens."""

    def __init__(self, targets: WebhookTargets, resolve: Resolve, deadline: Deadline) -> None:
        self._targets = targets
        self._resolve = resolve
        self._deadline = deadline
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = self._judged(host, port)
        failure = httpcore.ConnectError("it has no address")
        for address in addresses:
            left = self._deadline.left(httpcore.ConnectTimeout, timeout)
            try:
                stream = self._inner.connect_tcp(
                    str(address), port, left, local_address, socket_options
                )
            except httpcore.ConnectError as error:
                failure = error
            else:
                return DeadlineStream(stream, self._deadline)
        raise failure

    def _judged(self, host: str, port: int) -> list[Address]:
        addresses = [ip_address(text.partition("%")[0]) for text in self._resolved(host, port)]
        for address in addresses:
            # One bad address spoils all: which one is connected to must not be a matter of luck.
            if not self._targets.permit(host, address):
                message = f"{host} is {address}, which is not on the internet"
                raise TargetRefusedError(f"{message}: SD_WEBHOOK_ALLOW can allow it.")
        return addresses

    def _resolved(self, host: str, port: int) -> Sequence[str]:
        """As `resolve`, which knows no time limit."""
        outcome = queue.Queue[Sequence[str] | OSError | UnicodeError](1)

        def work() -> None:
            try:
                outcome.put(self._resolve(host, port))
            except (OSError, UnicodeError) as error:
                outcome.put(error)

        threading.Thread(target=work, name=f"resolve {host}", daemon=True).start()
        try:
            found = outcome.get(timeout=self._deadline.left(httpcore.ConnectTimeout))
        except queue.Empty:
            raise httpcore.ConnectTimeout(f"{host} is not resolved in time") from None
        if isinstance(found, OSError | UnicodeError):
            raise httpcore.ConnectError(f"{host} cannot be resolved: {found}") from found
        return found


class DeadlineStream(httpcore.NetworkStream):
    """A stream whose every step has the time that is left of the whole."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._deadline.left(httpcore.ReadTimeout, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._deadline.left(httpcore.WriteTimeout, timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = self._deadline.left(httpcore.ConnectTimeout, timeout)
        secure = self._inner.start_tls(ssl_context, server_hostname, left)
        return DeadlineStream(secure, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
