"""The calls about jobs and their pictures, as programs: what is sent, what comes back. No I/O."""

import json
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from httpx_sse import ServerSentEvent

from sdserve.client import answers, files
from sdserve.client.connection import ANSWER_MARGIN, Connection
from sdserve.client.effects import (
    Emit,
    Lost,
    NextPart,
    Part,
    Perform,
    Program,
    Reading,
    Request,
    Series,
    Sleep,
)
from sdserve.client.errors import ApiError, UnexpectedAnswerError, WaitTimeoutError
from sdserve.client.views import JobEvent, JobView, Picture

LONGEST_POLL = 60.0  # seconds; the server's own limit
LONGEST_HOLD = timedelta(minutes=10)  # of a submission without a preference
_POLL_INTERVAL = 0.1  # seconds; paces a server that answers a long poll at once
_PING_INTERVAL = 15.0  # seconds between two signs of life of an event stream
_RECONNECT = 2.0  # seconds, until the server's `retry` says otherwise


class JobCalls:
    """Submit, look, wait, collect, cancel."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def submit(
        self,
        app: str,
        body: Mapping[str, object],
        *,
        idempotency_key: str | None,
        prefer: str | None,
        longest_wait: timedelta,
    ) -> Program[JobView]:
        headers = {
            "Idempotency-Key": idempotency_key or str(uuid4()),
            "Content-Type": "application/json",
        }
        if prefer:
            headers["Prefer"] = prefer
        request = Request(
            method="POST",
            path=f"/{quote(app, safe='')}/v1/generate",
            headers=headers,
            content=json.dumps(dict(body)).encode(),
            silence=longest_wait.total_seconds() + ANSWER_MARGIN,
        )
        response = yield from self._connection.send(request)
        payload = answers.json_object(response)
        if response.status_code == 202:
            return answers.job_view(str(response.url), payload)
        if not isinstance(payload.get("job_id"), str):
            raise UnexpectedAnswerError(str(response.url), "the result has no job_id")
        return JobView.of_result(app, payload)

    def generate(
        self,
        app: str,
        body: Mapping[str, object],
        *,
        idempotency_key: str | None,
        at_most: timedelta | None,
    ) -> Program[JobView]:
        began = self._connection.clock()
        try:
            view = yield from self.submit(
                app, body, idempotency_key=idempotency_key, prefer=None, longest_wait=LONGEST_HOLD
            )
        except ApiError as error:
            if error.job_id is None:
                raise
            # The server waited for the job, which then failed: an outcome like any other.
            return (yield from self.job(error.job_id, wait=0))
        if view.status.is_final:
            return view
        return (yield from self.wait(view.id, at_most=at_most, began=began))

    def job(self, job_id: str, *, wait: float) -> Program[JobView]:
        request = Request(
            method="GET",
            path=_job_path(job_id),
            params={"wait": f"{wait:g}"} if wait else {},
            silence=wait + ANSWER_MARGIN,
        )
        response = yield from self._connection.send(request)
        return answers.job_view(str(response.url), answers.json_object(response))

    def wait(
        self, job_id: str, *, at_most: timedelta | None, began: float | None = None
    ) -> Program[JobView]:
        """`began`: when the time at most began to run; now when absent."""
        clock = self._connection.clock
        began = clock() if began is None else began
        deadline = None if at_most is None else began + at_most.total_seconds()
        while True:
            asked = clock()
            left = LONGEST_POLL if deadline is None else max(0.0, deadline - asked)
            view = yield from self.job(job_id, wait=min(left, LONGEST_POLL))
            if view.status.is_final:
                return view
            if at_most is not None and deadline is not None and clock() >= deadline:
                raise WaitTimeoutError(f"Job {job_id}", at_most, view.status)
            yield Sleep(seconds=max(0.0, _POLL_INTERVAL - (clock() - asked)))

    def watch(self, job_id: str, *, wait: float) -> Series[JobView]:
        while True:
            asked = self._connection.clock()
            view = yield from self.job(job_id, wait=wait)
            yield Emit(value=view)
            if view.status.is_final:
                return
            spent = self._connection.clock() - asked
            yield Sleep(seconds=max(0.0, _POLL_INTERVAL - spent))

    def stream(self, job_id: str, *, previews: bool) -> Series[JobEvent]:
        """Server-sent events (WHATWG HTML §9.2), reconnected with `Last-Event-ID`."""
        retry, pause, last_id = self._connection.retry(), _RECONNECT, ""
        view: JobView | None = None
        while True:
            response = yield from self._connection.send(
                Request(
                    method="GET",
                    path=_job_path(job_id) + "/events",
                    params={"previews": "true"} if previews else {},
                    headers={"Accept": answers.EVENTS, "Cache-Control": "no-store"}
                    | ({"Last-Event-ID": last_id} if last_id else {}),
                    silence=_PING_INTERVAL + ANSWER_MARGIN,
                    reading=Reading.EVENTS,
                ),
                retry,
            )
            answers.require_events(response)
            url = str(response.url)
            part: Part | Lost = yield NextPart()
            while isinstance(part, ServerSentEvent):
                last_id = part.id or last_id
                pause = pause if part.retry is None else part.retry / 1000
                if part.event == "job":
                    view = answers.job_of_event(url, part)
                    yield Emit(value=JobEvent(job=view))
                    if view.status.is_final:
                        return
                elif part.event == "preview" and view is not None:
                    preview = answers.preview_of_event(url, part)
                    yield Emit(value=JobEvent(job=view, preview=preview))
                part = yield NextPart()
            if isinstance(part, Lost):
                yield from self._connection.lost(retry, part, pause)
            else:
                yield Sleep(seconds=pause)  # the server ended it early: it stops, or a proxy did

    def image(self, job_id: str, k: int) -> Program[Picture]:
        request = Request(
            method="GET", path=f"{_job_path(job_id)}/image/{k}", silence=ANSWER_MARGIN
        )
        return answers.picture((yield from self._connection.send(request)))

    def pictures(self, view: JobView) -> Program[list[Picture]]:
        where = f"{self._connection.url}{_job_path(view.id)}"
        if (result := view.result) is None:
            raise UnexpectedAnswerError(where, f"the job is {view.status} and has no result")
        uris: list[object] = result.get("images") or [result.get("image")]
        count = int(view.parameters.get("num_images", 1))
        # Fewer than asked for: some have expired, and the download says so.
        is_whole = len(uris) == count
        if is_whole and all(isinstance(uri, str) and uri.startswith("data:") for uri in uris):
            try:
                return [Picture.of_data_uri(str(uri)) for uri in uris]
            except ValueError as error:
                raise UnexpectedAnswerError(where, "its image is not base64") from error
        pictures: list[Picture] = []
        for k in range(count):
            pictures.append((yield from self.image(view.id, k)))  # noqa: PERF401 - no yield there
        return pictures

    def save(self, view: JobView, folder: Path, stem: str | None) -> Program[list[Path]]:
        pictures = yield from self.pictures(view)
        work = partial(files.save_pictures, folder, stem or view.id, pictures)
        paths: list[Path] = yield Perform(work=work)
        return paths

    def cancel(self, job_id: str) -> Program[JobView]:
        request = Request(method="DELETE", path=_job_path(job_id), silence=ANSWER_MARGIN)
        response = yield from self._connection.send(request)
        return answers.job_view(str(response.url), answers.json_object(response))

    def models(self) -> Program[list[dict[str, Any]]]:
        request = Request(method="GET", path="/v1/models", silence=ANSWER_MARGIN)
        return answers.json_list((yield from self._connection.send(request)), "data")


def _job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"
