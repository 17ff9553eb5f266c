"""A TCP proxy with weather, between a client and Redis. It runs on a thread of its own."""

import asyncio
import threading
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

PIECE = 65536  # bytes


@dataclass(frozen=True, kw_only=True)
class Weather:
    """What happens to bytes on their way."""

    hold_requests: bool = False  # a black hole towards the server; they arrive when it is over
    hold_replies: bool = False  # a black hole back: the server has done what it was asked
    cut_replies: bool = False  # the server has done it, then the connection breaks
    delay: float = 0.0  # seconds, each way
    drip: int = 0  # bytes per 10 ms each way; 0: no limit


CALM = Weather()


class TcpProxy:
    """Listens on a port of its own and forwards to 127.0.0.1:`target`, through the weather."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._weather = CALM
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._connections = set[asyncio.Task[None]]()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(self._listen(), self._loop)
        self.port = started.result(10)
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def set(self, weather: Weather) -> None:
        """From now on, for open connections too."""
        asyncio.run_coroutine_threadsafe(self._set(weather), self._loop).result(10)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _set(self, weather: Weather) -> None:
        self._weather = weather
        # Wake whoever is held, and hold later ones with a fresh event.
        self._changed.set()
        self._changed = asyncio.Event()

    async def _close(self) -> None:
        self._server.close()
        while self._connections:  # some may have been accepted a moment ago
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
        for _ in range(3):  # a transport closes its socket in later turns of the loop
            await asyncio.sleep(0)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except (OSError, asyncio.CancelledError):  # the server is down, or we close: so is this
            writer.transport.abort()
            return
        pumps = [
            asyncio.create_task(self._pump(reader, back, replies=False)),
            asyncio.create_task(self._pump(there, writer, replies=True)),
        ]
        # The proxy may close at any of these awaits: then nothing is waited for any more.
        with suppress(asyncio.CancelledError):
            # When one side ends, so does the other.
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for stream in (writer, back):
                stream.close()
                with suppress(OSError, TimeoutError):  # who does not read is not waited for
                    await asyncio.wait_for(stream.wait_closed(), 1)
        for pump in pumps:
            pump.cancel()
        for stream in (writer, back):
            stream.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool
    ) -> None:
        with suppress(OSError):  # a broken connection is the end of it
            while data := await reader.read(PIECE):
                if self._weather.delay:
                    await asyncio.sleep(self._weather.delay)
                while self._weather.hold_replies if replies else self._weather.hold_requests:
                    await self._changed.wait()
                if replies and self._weather.cut_replies:
                    return
                await self._send(data, writer)

    async def _send(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        while data:
            drip = self._weather.drip
            piece, data = (data[:drip], data[drip:]) if drip else (data, b"")
            writer.write(piece)
            await writer.drain()
            if drip:
                await asyncio.sleep(0.01)
