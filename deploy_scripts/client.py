"""A typed, synchronous HTTP client of an sdserve server. It knows docs/http-api.md, nothing of Ray.

SdServeError
└── ClientError
    ├── InvalidUrlError         the server's address is not an http(s) URL
    ├── ServerAwayError         no connection within the patience
    ├── UnexpectedAnswerError   an answer that no sdserve server gives
    └── ApiError                the server refused; its own sentence
"""

import base64
import binascii
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Self
from urllib.parse import quote
from uuid import uuid4

import httpx
from pydantic import TypeAdapter, ValidationError

from sdserve.errors import SdServeError
from sdserve.jobs import JobFailure, JobStatus

DEFAULT_URL = "http://127.0.0.1:8000"

_LONGEST_PAUSE = 30.0  # seconds between two tries
_ANSWER_MARGIN = 30.0  # seconds beyond the wait that was asked for, before a call counts as lost
_POLL_INTERVAL = 0.1  # seconds; paces a server that answers a long poll at once
_TEMPORARY = frozenset({429, 502, 503, 504})
# Ray Serve's proxy, not our app, answers these in plain text while an app is being (re)started.
_TEMPORARY_FROM_PROXY = frozenset({404, 500})


class ClientError(SdServeError):
    """A call that did not get its answer."""

    code = "client_error"


class InvalidUrlError(ClientError):
    """The server's address is not an http(s) URL."""

    code = "invalid_url"

    def __init__(self, url: str) -> None:
        super().__init__(f"'{url}' is not the address of a server: write it like {DEFAULT_URL}.")


class ServerAwayError(ClientError):
    """Nobody answered within the patience."""

    code = "server_away"

    def __init__(self, url: str, patience: timedelta, reason: str) -> None:
        super().__init__(
            f"{url} has not answered for {patience.total_seconds():.0f} s ({reason}): "
            "start the server, or pass the right --url."
        )


class UnexpectedAnswerError(ClientError):
    """The answer does not fit the contract: another server, or another version."""

    code = "unexpected_answer"

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"The answer of {url} is not one of an sdserve server: {reason}.")


class ApiError(ClientError):
    """The server refused. `detail` is its own sentence."""

    code = "api_error"

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        *,
        job_id: str | None = None,
        is_temporary: bool = False,
    ) -> None:
        super().__init__(detail or f"The server answered {status} ({title}).")
        self.status = status
        self.title = title
        self.detail = detail
        self.job_id = job_id  # of the job that failed, when the refusal is a job's outcome
        self.is_temporary = is_temporary  # worth another try within the patience


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image as bytes of its format."""

    data: bytes = field(repr=False)
    media_type: str  # e.g. "image/png"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Denoising steps of all images of a job."""

    step: int = 0
    steps: int = 0


@dataclass(frozen=True, kw_only=True)
class JobView:
    """A job as the server tells it. Fields of a newer server are ignored."""

    id: str
    app: str
    status: JobStatus
    model: str | None = None
    phase: str | None = None  # in words: "reading file 43%", "step 12 of 30"
    progress: Progress | None = None
    position: int | None = None  # 0 = next; None when not queued
    eta_seconds: float | None = None
    attempt: int = 0
    created_at: datetime | None = None  # the three times are the server's
    started_at: datetime | None = None
    finished_at: datetime | None = None
    result: dict[str, Any] | None = field(default=None, repr=False)  # the 200 body
    error: JobFailure | None = None
    compute_metrics: dict[str, Any] | None = field(default=None, repr=False)

    @classmethod
    def of_result(cls, app: str, body: Mapping[str, Any]) -> Self:
        """A 200 answer of `generate`: a job that the server waited for."""
        return cls(
            id=str(body["job_id"]),
            app=app,
            status=JobStatus.SUCCEEDED,
            model=body.get("model"),
            result=dict(body),
            compute_metrics=body.get("compute_metrics"),
        )

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything that reproduces the pictures; empty before the job has succeeded."""
        found = (self.result or {}).get("parameters")
        return found if isinstance(found, dict) else {}

    @property
    def seconds(self) -> float | None:
        """From acceptance to the end, by the server's clock."""
        if self.created_at and self.finished_at:
            return (self.finished_at - self.created_at).total_seconds()
        return (self.compute_metrics or {}).get("query_duration_seconds")


class SdClient:
    """One server. Safe to share between threads.

    A lost connection, 429 and 503 are tried again (Retry-After, else growing pauses) until
    `patience` has passed without an answer. Every submission carries an idempotency key, so
    trying again never makes a second job.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        patience: timedelta = timedelta(minutes=1),
        sleep: Callable[[float], None] = time.sleep,
        waiting: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare the connection; nothing is sent yet.

        Args:
            url: address of the server, e.g. "http://127.0.0.1:8000".
            patience: how long one call keeps trying; zero = one try.
            sleep: waits that many seconds; may raise to give up.
            waiting: is told why a call is about to be tried again.

        Raises:
            InvalidUrlError: `url` is not an http(s) URL.
        """
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise InvalidUrlError(url) from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise InvalidUrlError(url)
        self.url = url.rstrip("/")
        self._patience = patience
        self._sleep = sleep
        self._waiting = waiting
        # A proxy of the environment is meant for other hosts, never for this machine.
        is_local = parsed.host in ("127.0.0.1", "localhost", "::1")
        self._http = httpx.Client(trust_env=not is_local)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(
        self,
        app: str,
        body: Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        prefer: str | None = None,
        longest_wait: timedelta = timedelta(minutes=10),
    ) -> JobView:
        """Ask for pictures: the finished job when the server waited for it, else the accepted one.

        Args:
            app: name of the app, e.g. "sd-sd-xl-base-1-0".
            body: the request fields; `prompt` at least.
            idempotency_key: same key and body = same job; a random one when absent.
            prefer: "respond-async" or "wait=N"; the server decides when absent.
            longest_wait: how long the server may hold the call before it counts as lost.

        Raises:
            ApiError: the request was refused.
            ServerAwayError: nobody answered within the patience.
        """
        headers = {
            "Idempotency-Key": idempotency_key or str(uuid4()),
            "Content-Type": "application/json",
        }
        content = json.dumps(dict(body)).encode()
        if prefer:
            headers["Prefer"] = prefer
        response = self._send(
            "POST",
            f"/{quote(app, safe='')}/v1/generate",
            wait=longest_wait.total_seconds(),
            headers=headers,
            content=content,
        )
        payload = self._object(response)
        if response.status_code == 202:
            return self._job(response, payload)
        if not isinstance(payload.get("job_id"), str):
            raise UnexpectedAnswerError(str(response.url), "the result has no job_id")
        return JobView.of_result(app, payload)

    def job(self, job_id: str, *, wait: float = 0) -> JobView:
        """The job as it stands, or as soon as it is final within `wait` seconds (at most 60).

        Raises:
            ApiError: 404 the id is unknown, 410 the job has expired.
        """
        params = {"wait": f"{wait:g}"} if wait else None
        response = self._send("GET", _job_path(job_id), wait=wait, params=params)
        return self._job(response, self._object(response))

    def watch(self, job_id: str, *, wait: float = 10) -> Iterator[JobView]:
        """Every view of the job that a chain of long polls shows; the last one is final."""
        while True:
            asked = time.monotonic()
            view = self.job(job_id, wait=wait)
            yield view
            if view.status.is_final:
                return
            self._sleep(max(0.0, _POLL_INTERVAL - (time.monotonic() - asked)))

    def image(self, job_id: str, k: int = 0) -> Picture:
        """Picture `k` (from 0) of a succeeded job."""
        response = self._send("GET", f"{_job_path(job_id)}/image/{k}", wait=0)
        media_type = response.headers.get("content-type", "").partition(";")[0]
        return Picture(data=response.content, media_type=media_type)

    def pictures(self, view: JobView) -> list[Picture]:
        """All pictures of a succeeded job: those in its result, else downloaded one by one."""
        where = f"{self.url}{_job_path(view.id)}"
        if (result := view.result) is None:
            raise UnexpectedAnswerError(where, f"the job is {view.status} and has no result")
        uris: list[object] = result.get("images") or [result.get("image")]
        count = int(view.parameters.get("num_images", 1))
        # Fewer than asked for: some have expired, and the download says so.
        is_whole = len(uris) == count
        if is_whole and all(isinstance(uri, str) and uri.startswith("data:") for uri in uris):
            try:
                return [_decode(str(uri)) for uri in uris]
            except (ValueError, binascii.Error) as error:
                raise UnexpectedAnswerError(where, "its image is not base64") from error
        return [self.image(view.id, k) for k in range(count)]

    def cancel(self, job_id: str) -> JobView:
        """Cancel: a queued job is cancelled at once, a running one within a step.

        Raises:
            ApiError: 404, 410 as for `job`; 409 the job has already ended.
        """
        response = self._send("DELETE", _job_path(job_id), wait=0)
        return self._job(response, self._object(response))

    def models(self) -> list[dict[str, Any]]:
        """The deployed apps, as the OpenAI list's `data`."""
        response = self._send("GET", "/v1/models", wait=0)
        data = self._object(response).get("data")
        if not isinstance(data, list):
            raise UnexpectedAnswerError(str(response.url), "it has no list 'data'")
        return [model for model in data if isinstance(model, dict)]

    def _send(
        self,
        method: str,
        path: str,
        *,
        wait: float,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> httpx.Response:
        """A success answer, whatever it takes within the patience.

        The patience counts from the end of the first failed try: the time before it went into
        waiting for an answer.
        """
        timeout = httpx.Timeout(_ANSWER_MARGIN, read=wait + _ANSWER_MARGIN)
        failing_since: float | None = None
        pause = 0.25
        while True:
            refusal: ClientError
            retry_after: float | None = None
            why: str
            try:
                response = self._http.request(
                    method,
                    self.url + path,
                    params=params,
                    headers=headers,
                    content=content,
                    timeout=timeout,
                )
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
                refusal = ServerAwayError(self.url, self._patience, reason)
                refusal.__cause__ = error
                why = f"{self.url} does not answer ({reason})"
            else:
                if response.is_success:
                    return response
                refused = _refusal(response)
                if not refused.is_temporary:
                    raise refused
                refusal, why = refused, str(refused)
                retry_after = _seconds(response.headers.get("retry-after"))
            now = time.monotonic()
            failing_since = now if failing_since is None else failing_since
            left = failing_since + self._patience.total_seconds() - now
            if left <= 0:
                raise refusal
            if self._waiting:
                self._waiting(why)
            # Jitter, so that many clients of a restarted server do not come back as one.
            wished = random.uniform(pause / 2, pause) if retry_after is None else retry_after  # noqa: S311
            self._sleep(min(wished, left, _LONGEST_PAUSE))
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _object(self, response: httpx.Response) -> dict[str, Any]:
        try:
            payload = response.json()
        except ValueError as error:
            raise UnexpectedAnswerError(str(response.url), "it is not JSON") from error
        if not isinstance(payload, dict):
            raise UnexpectedAnswerError(str(response.url), "it is not a JSON object")
        return payload

    def _job(self, response: httpx.Response, payload: dict[str, Any]) -> JobView:
        try:
            return _JOB_VIEW.validate_python(payload)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UnexpectedAnswerError(str(response.url), f"{where}: {first['msg']}") from error


def _job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _refusal(response: httpx.Response) -> ApiError:
    """The refusal in one sentence: a problem's own detail, else the first line of the answer."""
    status = response.status_code
    is_problem = response.headers.get("content-type", "").startswith("application/problem+json")
    is_temporary = status in _TEMPORARY or (status in _TEMPORARY_FROM_PROXY and not is_problem)
    title = response.reason_phrase
    detail, job_id = "", None
    try:
        payload = response.json()
    except ValueError:
        payload = None
    if isinstance(payload, dict):
        title = str(payload.get("title") or title)
        detail = str(payload.get("detail") or "")
        job_id = payload.get("job_id")
        # A broken app answers 503, yet only a redeploy heals it.
        is_temporary = is_temporary and "broken" not in str(payload.get("type", ""))
    elif lines := response.text.strip().splitlines():
        detail = f"The server answered {status}: {lines[0][:200]}"
    one_line = " ".join(detail.split())
    return ApiError(status, title, one_line, job_id=job_id, is_temporary=is_temporary)


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After in seconds. Its other form, a date, is left to the growing pauses."""
    return float(retry_after) if retry_after and retry_after.isdecimal() else None


def _decode(uri: str) -> Picture:
    """A `data:image/png;base64,...` URI."""
    head, _, data = uri.partition(",")
    media_type = head.removeprefix("data:").partition(";")[0]
    return Picture(data=base64.b64decode(data, validate=True), media_type=media_type)


_JOB_VIEW: TypeAdapter[JobView] = TypeAdapter(JobView)
