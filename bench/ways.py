"""The ways to draw a picture that are compared: loops without a server, and servers."""

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlencode, urlsplit

if TYPE_CHECKING:  # it imports diffusers
    from bench.peers.drawing import Request

ROOT = Path(__file__).parent.parent
PATIENCE = 180.0  # seconds for a server to come up, and for a picture
STOP_PATIENCE = 15.0  # seconds
CLIENTS = 4  # of a saturated server


class Way(Protocol):
    """One of them, ready."""

    def draw(self, requests: "Sequence[Request]") -> list[float]:
        """Seconds of each, one after the other: drawing and encoding, and a server's part."""
        ...

    def rate(self, requests: "Sequence[Request]") -> float:
        """Pictures per second with always more to do; a loop's without its encoding."""
        ...


class Loop:
    """A process of bench/loop.py."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def draw(self, requests: "Sequence[Request]") -> list[float]:
        told = self._run(requests)
        return [sum(parts) for parts in zip(told["drawing"], told["encoding"], strict=True)]

    def rate(self, requests: "Sequence[Request]") -> float:
        return len(requests) / sum(self._run(requests)["drawing"])

    def _run(self, requests: "Sequence[Request]") -> dict[str, list[float]]:
        assert self._process.stdin is not None  # noqa: S101 (both are pipes)
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdin.write(json.dumps(requests) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server, asked over connections that are kept."""

    url: str  # of its route
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    is_query: bool = False  # GET with a query, instead of a JSON body

    def draw(self, requests: "Sequence[Request]") -> list[float]:
        seconds = list[float]()
        connection = self._connect()
        for request in requests:
            begin = time.perf_counter()
            self._ask(connection, request)
            seconds.append(time.perf_counter() - begin)
        connection.close()
        return seconds

    def rate(self, requests: "Sequence[Request]") -> float:
        left, lock = iter(requests), threading.Lock()
        failures = list[Exception]()

        def take() -> "Iterator[Request]":
            while True:
                with lock:
                    request = next(left, None)
                if request is None:
                    return
                yield request

        def client() -> None:
            connection = self._connect()
            try:
                for request in take():
                    self._ask(connection, request)
            except (OSError, http.client.HTTPException) as error:
                failures.append(error)
            finally:
                connection.close()

        threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return len(requests) / (time.perf_counter() - begin)

    def picture(self, request: "Request") -> bytes:
        """The bytes of its PNG."""
        connection = self._connect()
        try:
            return self._ask(connection, request)
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=PATIENCE)

    def _ask(self, connection: http.client.HTTPConnection, request: "Request") -> bytes:
        path = urlsplit(self.url).path
        if self.is_query:
            connection.request("GET", f"{path}?{urlencode(request)}")
        else:
            headers = {"Content-Type": "application/json", **self.headers}
            connection.request("POST", path, json.dumps(request), headers)
        response = connection.getresponse()
        content = response.read()
        if response.status != 200 or not content.startswith(b"\x89PNG"):
            told = f"{self.url} answered {response.status}: {content[:300]!r}"
            raise http.client.HTTPException(told)
        return content


@dataclass(frozen=True, kw_only=True)
class Ours(Server):
    """A server of ours, which tells what a request took inside."""

    def overheads(self, requests: "Sequence[Request]") -> list[float]:
        """Seconds of each request beside its drawing and encoding, which its own job tells."""
        seconds = list[float]()
        connection = self._connect()
        for request in requests:
            begin = time.perf_counter()
            connection.request(
                "POST", urlsplit(self.url).path, json.dumps(request),
                {"Content-Type": "application/json", **HELD},
            )  # fmt: skip
            content = connection.getresponse().read()
            total = time.perf_counter() - begin
            metrics = json.loads(content)["compute_metrics"]
            seconds.append(total - sum(metrics[part] for part in DRAWING))
        connection.close()
        return seconds


# Ours holds a request whatever its state, and answers with the bytes, as the peers do.
HELD = {"Prefer": "wait=60"}
OURS = {"Accept": "image/png", **HELD}
DRAWING = ("encode_seconds", "denoise_seconds", "decode_seconds", "image_encode_seconds")


@contextmanager
def loop(python: Path, name: str, model: Path, threads: int) -> Generator[Loop]:
    """A loop of bench/loop.py in a process of its own."""
    command = [str(python), "-m", "bench.loop", name, "--model", str(model)]
    with subprocess.Popen(  # noqa: S603 (ours)
        [*command, "--threads", str(threads)],
        cwd=ROOT, env=environment(threads), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None  # noqa: S101 (a pipe)
        if not process.stdout.readline():
            raise RuntimeError(f"the loop '{name}' ended before it began: it printed why")
        yield Loop(process)


@contextmanager
def peer(
    python: Path, name: str, route: str, probe: "Request", model: Path, threads: int
) -> Generator[Server]:
    """The server of bench/peers/NAME_peer.py, once it has drawn `probe`.

    Raises:
        RuntimeError: it does not come up.
    """
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [str(python), "-m", f"bench.peers.{name}_peer", "--model", str(model)]
    process = subprocess.Popen(  # noqa: S603 (ours)
        [*command, "--port", str(port), "--threads", str(threads)],
        cwd=ROOT, env=environment(threads), stdout=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    server = Server(url=f"http://127.0.0.1:{port}{route}")
    try:
        _until_drawing(server, probe, process)
        yield server
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_PATIENCE)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # workers that it has left behind
        process.wait()


def _until_drawing(server: Server, probe: "Request", process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            server.picture(probe)
        except (OSError, http.client.HTTPException) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{server.url} does not come up: {error}") from error
            time.sleep(0.2)
        else:
            return


def environment(threads: int) -> dict[str, str]:
    """Of every process that draws: the same threads, no hub."""
    return os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
