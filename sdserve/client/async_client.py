"""The asynchronous client: a thin driver of the programs in the *_calls.py files."""

import contextlib
import os
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Mapping,
)
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import anyio
import anyio.to_thread
import httpx
from httpx_sse import EventSource, ServerSentEvent

from sdserve.client.account_calls import AccountCalls
from sdserve.client.batch_calls import BatchCalls
from sdserve.client.connection import Connection
from sdserve.client.effects import (
    Effect,
    Emit,
    Lost,
    NextPart,
    Perform,
    Program,
    Reading,
    Request,
    Series,
    Sleep,
)
from sdserve.client.errors import DEFAULT_URL
from sdserve.client.job_calls import LONGEST_HOLD, JobCalls
from sdserve.client.views import BatchLineView, BatchView, JobEvent, JobView, Picture, UsageView
from sdserve.jobs import JobStatus

T = TypeVar("T")


class AsyncSdClient:
    """`SdClient` for asyncio and trio: the same calls, with the same promises."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        patience: timedelta = timedelta(minutes=1),
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        waiting: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare the connection; nothing is sent yet.

        Args:
            url: address of the server, e.g. "http://127.0.0.1:8000".
            api_key: "sd_..."; that of the environment's SD_API_KEY when absent.
            patience: how long one call keeps trying; zero = one try.
            sleep: waits that many seconds; may raise to give up.
            waiting: is told why a call is about to be tried again.

        Raises:
            InvalidUrlError: `url` is not an http(s) URL.
        """
        self._connection = Connection(
            url,
            api_key=api_key or os.environ.get("SD_API_KEY"),
            patience=patience,
            waiting=waiting,
            clock=time.monotonic,
        )
        self._jobs = JobCalls(self._connection)
        self._account = AccountCalls(self._connection)
        self._batches = BatchCalls(self._connection)
        self._sleep = sleep
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=self._connection.headers,
            trust_env=not self._connection.is_local,
        )

    @property
    def url(self) -> str:
        return self._connection.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def submit(
        self,
        app: str,
        body: Mapping[str, object],
        *,
        idempotency_key: str | None = None,
        prefer: str | None = None,
        longest_wait: timedelta = LONGEST_HOLD,
    ) -> JobView:
        """As `SdClient.submit`."""
        return await self._run(
            self._jobs.submit(
                app,
                body,
                idempotency_key=idempotency_key,
                prefer=prefer,
                longest_wait=longest_wait,
            )
        )

    async def generate(
        self,
        app: str,
        body: Mapping[str, object],
        *,
        idempotency_key: str | None = None,
        at_most: timedelta | None = None,
    ) -> JobView:
        """As `SdClient.generate`."""
        return await self._run(
            self._jobs.generate(app, body, idempotency_key=idempotency_key, at_most=at_most)
        )

    async def job(self, job_id: str, *, wait: float = 0) -> JobView:
        """As `SdClient.job`."""
        return await self._run(self._jobs.job(job_id, wait=wait))

    async def wait(self, job_id: str, *, at_most: timedelta | None = None) -> JobView:
        """As `SdClient.wait`."""
        return await self._run(self._jobs.wait(job_id, at_most=at_most))

    def watch(self, job_id: str, *, wait: float = 10) -> AsyncGenerator[JobView]:
        """As `SdClient.watch`."""
        return self._iterate(self._jobs.watch(job_id, wait=wait))

    def stream(self, job_id: str, *, previews: bool = False) -> AsyncGenerator[JobEvent]:
        """As `SdClient.stream`."""
        return self._iterate(self._jobs.stream(job_id, previews=previews))

    async def image(self, job_id: str, k: int = 0) -> Picture:
        """As `SdClient.image`."""
        return await self._run(self._jobs.image(job_id, k))

    async def pictures(self, view: JobView) -> list[Picture]:
        """As `SdClient.pictures`."""
        return await self._run(self._jobs.pictures(view))

    async def save(self, view: JobView, folder: Path, stem: str | None = None) -> list[Path]:
        """As `SdClient.save`."""
        return await self._run(self._jobs.save(view, folder, stem))

    async def cancel(self, job_id: str) -> JobView:
        """As `SdClient.cancel`."""
        return await self._run(self._jobs.cancel(job_id))

    async def models(self) -> list[dict[str, Any]]:
        """As `SdClient.models`."""
        return await self._run(self._jobs.models())

    def jobs(
        self, *, app: str | None = None, status: JobStatus | None = None, page: int = 50
    ) -> AsyncGenerator[JobView]:
        """As `SdClient.jobs`."""
        return self._iterate(self._account.jobs(app=app, status=status, page=page))

    async def usage(
        self,
        *,
        by: Literal["key", "app", "day"] = "day",
        first: date | None = None,
        last: date | None = None,
        app: str | None = None,
    ) -> UsageView:
        """As `SdClient.usage`."""
        return await self._run(self._account.usage(by=by, first=first, last=last, app=app))

    async def create_batch(
        self,
        lines: Iterable[Mapping[str, object]] | bytes,
        *,
        app: str | None = None,
        defaults: Mapping[str, object] | None = None,
        webhook: str | None = None,
        idempotency_key: str | None = None,
    ) -> BatchView:
        """As `SdClient.create_batch`."""
        return await self._run(
            self._batches.create(
                lines,
                app=app,
                defaults=defaults,
                webhook=webhook,
                idempotency_key=idempotency_key,
            )
        )

    async def batch(self, batch_id: str) -> BatchView:
        """As `SdClient.batch`."""
        return await self._run(self._batches.batch(batch_id))

    async def cancel_batch(self, batch_id: str) -> BatchView:
        """As `SdClient.cancel_batch`."""
        return await self._run(self._batches.cancel(batch_id))

    def batch_results(self, batch_id: str, *, after: int = 0) -> AsyncGenerator[BatchLineView]:
        """As `SdClient.batch_results`."""
        return self._iterate(self._batches.results(batch_id, after=after))

    async def download_batch(self, batch_id: str, path: Path) -> Path:
        """As `SdClient.download_batch`."""
        return await self._run(self._batches.download(batch_id, path))

    async def _run(self, program: Program[T]) -> T:
        driver = _Driver(self._http, self._sleep, program)
        async with contextlib.aclosing(driver):
            reply: Any = None
            while True:
                try:
                    effect = program.send(reply)
                except StopIteration as end:
                    result: T = end.value
                    return result
                reply = await driver.perform(effect)

    async def _iterate(self, series: Series[T]) -> AsyncGenerator[T]:
        driver = _Driver(self._http, self._sleep, series)
        async with contextlib.aclosing(driver):
            reply: Any = None
            while True:
                try:
                    effect = series.send(reply)
                except StopIteration:
                    return
                if isinstance(effect, Emit):
                    reply = None
                    yield effect.value
                else:
                    reply = await driver.perform(effect)


class _Driver:
    """Performs the effects of one program."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        sleep: Callable[[float], Awaitable[None]],
        program: Generator[Any, Any, Any],
    ) -> None:
        self._program = program
        self._http = http
        self._sleep = sleep
        self._response: httpx.Response | None = None
        self._parts: AsyncIterator[bytes] | AsyncIterator[ServerSentEvent] | None = None

    async def aclose(self) -> None:
        """Let go of what is held, also when an effect failed or the caller left early."""
        self._program.close()
        await self._hang_up()

    async def _hang_up(self) -> None:
        if self._response:
            await self._response.aclose()

    async def perform(self, effect: Effect) -> Any:
        match effect:
            case Request():
                return await self._send(effect)
            case NextPart():
                try:
                    return await anext(self._parts, None) if self._parts else None
                except httpx.TransportError as error:
                    return Lost(error=error)
            case Sleep():
                await self._sleep(effect.seconds)
                return None
            case Perform():
                return await anyio.to_thread.run_sync(effect.work)

    async def _send(self, request: Request) -> httpx.Response | Lost:
        await self._hang_up()
        built = request.build(self._http)
        try:
            self._response = response = await self._http.send(built, stream=True)
            if request.reading is Reading.WHOLE or not response.is_success:
                await response.aread()
        except httpx.TransportError as error:
            return Lost(error=error)
        events = request.reading is Reading.EVENTS
        self._parts = EventSource(response).aiter_sse() if events else response.aiter_bytes()
        return response
