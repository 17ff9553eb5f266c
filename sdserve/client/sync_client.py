"""The synchronous client: a thin driver of the programs in the *_calls.py files."""

import contextlib
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

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


class SdClient:
    """One server. Safe to share between threads; close it, or use it in a `with`.

    A lost connection, 429 and 503 are tried again (Retry-After, else growing pauses) until
    `patience` has passed without an answer. Every submission carries an idempotency key, so
    trying again never makes a second job.

    Every call raises `ApiError` when the server refuses, `ServerAwayError` when nobody answers
    within the patience and `UnexpectedAnswerError` when the answer is no sdserve server's.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        patience: timedelta = timedelta(minutes=1),
        sleep: Callable[[float], None] = time.sleep,
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
        self._http = httpx.Client(
            base_url=self.url,
            headers=self._connection.headers,
            trust_env=not self._connection.is_local,
        )

    @property
    def url(self) -> str:
        return self._connection.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(
        self,
        app: str,
        body: Mapping[str, object],
        *,
        idempotency_key: str | None = None,
        prefer: str | None = None,
        longest_wait: timedelta = LONGEST_HOLD,
    ) -> JobView:
        """Ask for pictures: the finished job when the server waited for it, else the accepted one.

        Args:
            app: name of the app, e.g. "sd-sd-xl-base-1-0".
            body: the request fields; `prompt` at least.
            idempotency_key: same key and body = same job; a random one when absent.
            prefer: "respond-async" or "wait=N"; the server decides when absent.
            longest_wait: how long the server may hold the call before it counts as lost.
        """
        return self._run(
            self._jobs.submit(
                app,
                body,
                idempotency_key=idempotency_key,
                prefer=prefer,
                longest_wait=longest_wait,
            )
        )

    def generate(
        self,
        app: str,
        body: Mapping[str, object],
        *,
        idempotency_key: str | None = None,
        at_most: timedelta | None = None,
    ) -> JobView:
        """Submit and wait to the end, warm or cold: the final job, whatever its outcome.

        Args:
            app: name of the app.
            body: the request fields; `prompt` at least.
            idempotency_key: same key and body = same job; a random one when absent.
            at_most: how long to wait; for ever when absent.

        Raises:
            WaitTimeoutError: it has not ended by then.
        """
        return self._run(
            self._jobs.generate(app, body, idempotency_key=idempotency_key, at_most=at_most)
        )

    def job(self, job_id: str, *, wait: float = 0) -> JobView:
        """The job as it stands, or as soon as it is final within `wait` seconds (at most 60).

        Raises:
            ApiError: 404 the id is unknown, 410 the job has expired.
        """
        return self._run(self._jobs.job(job_id, wait=wait))

    def wait(self, job_id: str, *, at_most: timedelta | None = None) -> JobView:
        """The job once it is final, whatever its outcome.

        Raises:
            WaitTimeoutError: it is not within `at_most`.
        """
        return self._run(self._jobs.wait(job_id, at_most=at_most))

    def watch(self, job_id: str, *, wait: float = 10) -> Iterator[JobView]:
        """Every view of the job that a chain of long polls shows; the last one is final."""
        return self._iterate(self._jobs.watch(job_id, wait=wait))

    def stream(self, job_id: str, *, previews: bool = False) -> Iterator[JobEvent]:
        """Every change of the job as it happens; the last event's job is final.

        A connection that breaks is made again, and nothing is told twice. Whoever reads slowly
        gets the newest state. Final results come without the bytes of their pictures:
        `pictures` or `save` fetch them.

        Args:
            job_id: of a 200 or 202 answer.
            previews: small pictures of the steps, too.
        """
        return self._iterate(self._jobs.stream(job_id, previews=previews))

    def image(self, job_id: str, k: int = 0) -> Picture:
        """Picture `k` (from 0) of a succeeded job."""
        return self._run(self._jobs.image(job_id, k))

    def pictures(self, view: JobView) -> list[Picture]:
        """All pictures of a succeeded job: those in its result, else downloaded one by one."""
        return self._run(self._jobs.pictures(view))

    def save(self, view: JobView, folder: Path, stem: str | None = None) -> list[Path]:
        """The pictures of a succeeded job as files, each whole or not at all.

        Args:
            view: the job.
            folder: made when it is not there.
            stem: "fox" makes fox.png, or fox-1.png, fox-2.png, ...; the job's id when absent.

        Raises:
            NotSavedError: the disk refuses.
        """
        return self._run(self._jobs.save(view, folder, stem))

    def cancel(self, job_id: str) -> JobView:
        """Cancel: a queued job is cancelled at once, a running one within a step.

        Raises:
            ApiError: 404, 410 as for `job`; 409 the job has already ended.
        """
        return self._run(self._jobs.cancel(job_id))

    def models(self) -> list[dict[str, Any]]:
        """The deployed apps, as the OpenAI list's `data`."""
        return self._run(self._jobs.models())

    def jobs(
        self, *, app: str | None = None, status: JobStatus | None = None, page: int = 50
    ) -> Iterator[JobView]:
        """One's jobs, newest first, for as long as they are known; an admin's key sees all.

        Args:
            app: only jobs of this app.
            status: only jobs of this status.
            page: how many are asked for at a time, 1..100; the next ones when they are wanted.
        """
        return self._iterate(self._account.jobs(app=app, status=status, page=page))

    def usage(
        self,
        *,
        by: Literal["key", "app", "day"] = "day",
        first: date | None = None,
        last: date | None = None,
        app: str | None = None,
    ) -> UsageView:
        """What ended jobs used: of this key, or with an admin's key of all.

        Args:
            by: what a row is the sum of.
            first: day, UTC; 29 days before `last` when absent.
            last: day, UTC; today when absent.
            app: of this app only.
        """
        return self._run(self._account.usage(by=by, first=first, last=last, app=app))

    def create_batch(
        self,
        lines: Iterable[Mapping[str, object]] | bytes,
        *,
        app: str | None = None,
        defaults: Mapping[str, object] | None = None,
        webhook: str | None = None,
        idempotency_key: str | None = None,
    ) -> BatchView:
        """Hand in many generations as one: all of its lines are accepted, or none.

        Args:
            lines: request fields each, besides `app` and `custom_id` where wanted; or the bytes of
                JSON Lines, sent as they are.
            app: for lines that name none.
            defaults: request fields for lines that lack them.
            webhook: https URL that is told of the batch's end.
            idempotency_key: same key and lines = same batch; a random one when absent.
        """
        return self._run(
            self._batches.create(
                lines,
                app=app,
                defaults=defaults,
                webhook=webhook,
                idempotency_key=idempotency_key,
            )
        )

    def batch(self, batch_id: str) -> BatchView:
        """The batch as it stands."""
        return self._run(self._batches.batch(batch_id))

    def cancel_batch(self, batch_id: str) -> BatchView:
        """Cancel what has not ended: waiting lines at once, running jobs within a step.

        Raises:
            ApiError: 409 the batch has already ended.
        """
        return self._run(self._batches.cancel(batch_id))

    def batch_results(self, batch_id: str, *, after: int = 0) -> Iterator[BatchLineView]:
        """Where each line stands, in their order; a connection that breaks is made again.

        Args:
            batch_id: of a 202 answer.
            after: the last line that you have.
        """
        return self._iterate(self._batches.results(batch_id, after=after))

    def download_batch(self, batch_id: str, path: Path) -> Path:
        """All pictures that are still kept as one zip file, whole or not at all.

        Raises:
            NotSavedError: the disk refuses.
        """
        return self._run(self._batches.download(batch_id, path))

    def _run(self, program: Program[T]) -> T:
        with contextlib.closing(_Driver(self._http, self._sleep, program)) as driver:
            reply: Any = None
            while True:
                try:
                    effect = program.send(reply)
                except StopIteration as end:
                    result: T = end.value
                    return result
                reply = driver.perform(effect)

    def _iterate(self, series: Series[T]) -> Iterator[T]:
        with contextlib.closing(_Driver(self._http, self._sleep, series)) as driver:
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
                    reply = driver.perform(effect)


class _Driver:
    """Performs the effects of one program."""

    def __init__(
        self,
        http: httpx.Client,
        sleep: Callable[[float], None],
        program: Generator[Any, Any, Any],
    ) -> None:
        self._program = program
        self._http = http
        self._sleep = sleep
        self._response: httpx.Response | None = None
        self._parts: Iterator[bytes] | Iterator[ServerSentEvent] = iter(())

    def close(self) -> None:
        """Let go of what is held, also when an effect failed or the caller left early."""
        self._program.close()
        self._hang_up()

    def _hang_up(self) -> None:
        if self._response:
            self._response.close()

    def perform(self, effect: Effect) -> Any:
        match effect:
            case Request():
                return self._send(effect)
            case NextPart():
                try:
                    return next(self._parts, None)
                except httpx.TransportError as error:
                    return Lost(error=error)
            case Sleep():
                self._sleep(effect.seconds)
                return None
            case Perform():
                return effect.work()

    def _send(self, request: Request) -> httpx.Response | Lost:
        self._hang_up()
        built = request.build(self._http)
        try:
            self._response = response = self._http.send(built, stream=True)
            if request.reading is Reading.WHOLE or not response.is_success:
                response.read()
        except httpx.TransportError as error:
            return Lost(error=error)
        events = request.reading is Reading.EVENTS
        self._parts = EventSource(response).iter_sse() if events else response.iter_bytes()
        return response
