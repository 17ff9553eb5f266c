"""A server that keeps the HTTP contract without Ray, Redis or a model; it can die and come back.

The jobs live in the `FakeServer` object, as the real ones live in Redis: `stop()` closes the port,
`start()` opens the same one again, and every job is still there.
"""

import base64
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import uuid4

import anyio
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

APP = "sd-tiny"
BATCH = "01a20894-464e-7ebd-800d-5bcb0e3d2168"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
_STEPS = 4


def picture(seed: int) -> bytes:
    """The image of a seed; PNG readers ignore what follows the last chunk."""
    return PNG + seed.to_bytes(4, "big")


@dataclass
class FakeJob:
    """A job of which only the clock decides how far it is."""

    id: str
    body: dict[str, Any]
    seconds: float
    fails: bool
    created: float = field(default_factory=time.monotonic)
    seed: int = 0
    is_cancelled: bool = False

    @property
    def age(self) -> float:
        return time.monotonic() - self.created

    @property
    def status(self) -> str:
        if self.is_cancelled:
            return "cancelled"
        if self.age < self.seconds / 3:
            return "queued"
        if self.age < self.seconds:
            return "running"
        return "failed" if self.fails else "succeeded"

    @property
    def is_final(self) -> bool:
        return self.status in ("succeeded", "failed", "cancelled")


class FakeServer:
    """One app, `APP`, and what it was asked. Set the attributes to make it behave."""

    def __init__(self) -> None:
        self.seconds = 0.05  # of each new job
        self.is_warm = False  # answer 200 at once unless the client prefers otherwise
        self.failing_prompts: set[str] = set()
        self.refused_prompts: set[str] = set()
        self.expired_ids: set[str] = set()
        self.refusals: list[Response] = []  # given instead of the next answers
        self.lose_answers = 0  # accept so many jobs, and break the connection instead of saying so
        self.jobs: dict[str, FakeJob] = {}
        self.keys: dict[str, tuple[str, dict[str, Any]]] = {}
        self.submissions: list[tuple[str, dict[str, Any]]] = []  # (key, body), repeats included
        self.cut_streams = 0  # break so many event streams after their first event
        self.open_streams = 0
        self.batch_lines: list[dict[str, Any]] = []  # of the one batch
        self.batch_keys: list[str] = []
        self.cursors: list[int] = []  # of each request for its results
        self.usage_asked: list[dict[str, str]] = []
        self.streams: list[str | None] = []  # the Last-Event-ID of each stream asked for
        self.keys_sent: list[str | None] = []  # the Authorization of each request
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._uvicorn: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def prompts(self) -> list[str]:
        """The prompts of all jobs that were ever made, in order."""
        return [job.body["prompt"] for job in self.jobs.values()]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        config = uvicorn.Config(
            self._app(),
            host="127.0.0.1",
            port=self.port,
            log_level="critical",
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=0,
        )
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._uvicorn.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._uvicorn is not None and self._uvicorn.started)

    def stop(self) -> None:
        if self._uvicorn and self._thread:
            self._uvicorn.should_exit = True
            self._uvicorn.force_exit = True
            self._thread.join(10)
            self._uvicorn = None

    def _app(self) -> ASGIApp:
        app = FastAPI()

        for method, path, answer in (
            ("POST", "/{name}/v1/generate", self._generate),
            ("POST", "/v1/batches", self._create_batch),
            ("GET", "/v1/batches/{batch_id}", self._batch),
            ("DELETE", "/v1/batches/{batch_id}", self._batch),
            ("GET", "/v1/batches/{batch_id}/results", self._batch_results),
            ("GET", "/v1/batches/{batch_id}/images.zip", self._batch_zip),
            ("GET", "/v1/jobs", self._list_jobs),
            ("GET", "/v1/usage", self._usage),
            ("GET", "/v1/jobs/{job_id}", self._get_job),
            ("GET", "/v1/jobs/{job_id}/events", self._events),
            ("GET", "/v1/jobs/{job_id}/image/{k}", self._image),
            ("DELETE", "/v1/jobs/{job_id}", self._cancel),
            ("GET", "/v1/models", self._models),
        ):
            app.add_api_route(path, answer, methods=[method], response_model=None)

        # No middleware of FastAPI's: it would end an answer that breaks off as if it were whole.
        async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
            self.keys_sent.append(Headers(scope=scope).get("authorization"))
            await (self.refusals.pop(0) if self.refusals else app)(scope, receive, send)

        return refuse

    async def _get_job(self, job_id: str, wait: float = 0) -> Response:
        if (job := self.jobs.get(job_id)) is None:
            return problem(404, "job_not_found", f"No job has the id '{job_id}'.")
        if job_id in self.expired_ids:
            return problem(410, "job_expired", f"Job {job_id} has expired.")
        await _end_of(job, wait)
        return JSONResponse(self._view(job))

    async def _create_batch(self, request: Request, app: str, defaults: str = "{}") -> Response:
        self.batch_keys.append(request.headers["idempotency-key"])
        given = json.loads(defaults)
        lines = (await request.body()).splitlines()
        self.batch_lines = [{"app": app, **given, **json.loads(line)} for line in lines]
        return JSONResponse(self._batch_view("accepted"), 202)

    async def _batch(self, batch_id: str, request: Request) -> Response:
        if batch_id != BATCH:
            return problem(404, "batch_not_found", f"No batch has the id '{batch_id}'.")
        return JSONResponse(
            self._batch_view("cancelling" if request.method == "DELETE" else "running")
        )

    def _batch_view(self, status: str) -> dict[str, Any]:
        count = len(self.batch_lines)
        counts = {"waiting": count, "active": 0, "succeeded": 0, "failed": 0, "cancelled": 0}
        return {"id": BATCH, "status": status, "lines": count, "counts": counts, "links": {}}

    async def _batch_results(self, batch_id: str, cursor: int = 0) -> Response:
        self.cursors.append(cursor)

        async def parts() -> AsyncIterator[bytes]:
            for number, line in enumerate(self.batch_lines[cursor:], cursor + 1):
                told = {"line": number, "app": line["app"], "status": "succeeded", "seed": number}
                yield json.dumps(told).encode()[:10]
                if number == 3:
                    self._cut()
                yield json.dumps(told).encode()[10:] + b"\n"

        return StreamingResponse(parts(), media_type="application/x-ndjson")

    async def _batch_zip(self, batch_id: str) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield PNG * 1000
                await anyio.sleep(0.01)
                self._cut()

        return StreamingResponse(parts(), media_type="application/zip")

    def _cut(self) -> None:
        if self.cut_streams:
            self.cut_streams -= 1
            raise ConnectionAbortedError  # in the middle of a chunked body

    async def _list_jobs(
        self, limit: int, cursor: int = 0, app: str = APP, status: str | None = None
    ) -> Response:
        """Newest first; the cursor is the number of those that were told."""
        found = [self._view(job) for job in reversed(self.jobs.values())]
        found = [job for job in found if job["app"] == app and status in (None, job["status"])]
        following = str(cursor + limit) if len(found) > cursor + limit else None
        data = found[cursor : cursor + limit]
        return JSONResponse({"object": "list", "data": data, "next_cursor": following})

    async def _usage(self, request: Request) -> Response:
        self.usage_asked.append(dict(request.query_params))
        amounts = {"jobs_succeeded": 2, "images": 3, "gpu_seconds": 1.5, "of_the_future": 1}
        row = {"key": None, "app": None, "day": "2026-11-24", **amounts}
        return JSONResponse({"object": "list", "by": "day", "data": [row], "total": amounts})

    async def _events(self, job_id: str, request: Request, previews: bool = False) -> Response:
        if (job := self.jobs.get(job_id)) is None:
            return problem(404, "job_not_found", f"No job has the id '{job_id}'.")
        last = request.headers.get("last-event-id")
        self.streams.append(last)
        return StreamingResponse(self._changes(job, last, previews), media_type="text/event-stream")

    async def _changes(
        self, job: FakeJob, last: str | None, previews: bool
    ) -> AsyncIterator[bytes]:
        """The states that `last` has not seen, then the next ones; `cut_streams` ends it early."""
        self.open_streams += 1
        try:
            async for part in self._unseen(job, last, previews):
                yield part
        finally:
            self.open_streams -= 1

    async def _unseen(self, job: FakeJob, last: str | None, previews: bool) -> AsyncIterator[bytes]:
        yield b"retry: 20\n: ping\n\n"
        seen = int(last) if last else -1
        while True:
            if (version := self._version(job)) > seen:
                seen = version
                view = self._view(job)
                if view["result"]:  # events carry no pictures
                    view["result"] |= {"image": None}
                    view["result"].pop("images", None)
                yield f"event: job\nid: {version}\ndata: {json.dumps(view)}\n\n".encode()
                if job.is_final:
                    return
                if previews:
                    step = {"step": version, "steps": _STEPS, "number": 0}
                    uri = f"data:image/webp;base64,{base64.b64encode(picture(version)).decode()}"
                    data = json.dumps(step | {"image": uri})
                    yield f"event: preview\ndata: {data}\n\n".encode()
                self._cut()
            await anyio.sleep(0.005)

    def _version(self, job: FakeJob) -> int:
        """Counts what a client could see change."""
        if job.is_final:
            return _STEPS + 1
        return min(_STEPS, int(_STEPS * job.age / job.seconds))

    async def _image(self, job_id: str, k: int) -> Response:
        if job_id in self.expired_ids:
            return problem(410, "job_expired", f"Job {job_id} has expired.")
        return Response(picture(self.jobs[job_id].seed + k), media_type="image/png")

    async def _cancel(self, job_id: str) -> Response:
        job = self.jobs[job_id]
        if job.is_final:
            return problem(409, "job_is_final", f"Job {job_id} is {job.status} already.")
        job.is_cancelled = True
        return JSONResponse(self._view(job))

    async def _models(self) -> Response:
        model = {"id": APP, "object": "model", "state": "ready"}
        return JSONResponse({"object": "list", "data": [model]})

    async def _generate(self, name: str, request: Request) -> Response:
        body, key = await request.json(), request.headers["Idempotency-Key"]
        self.submissions.append((key, body))
        if name != APP:
            return problem(404, "app_not_found", f"No app '{name}' is deployed.")
        if body["prompt"] in self.refused_prompts:
            return problem(422, "invalid_request", "prompt: this server dislikes it")
        if body.get("width", 64) % 8:
            return problem(422, "invalid_parameter", "width: 100 is not a multiple of 8")
        known, known_body = self.keys.get(key, ("", body))
        if known_body != body:
            return problem(422, "idempotency_conflict", "This key belongs to another body.")
        job = self.jobs.get(known) or self._accept(key, body)
        if self.lose_answers:
            self.lose_answers -= 1
            raise ConnectionAbortedError  # uvicorn closes the connection without an answer
        if job.is_final and job.status != "succeeded":
            status = 409 if job.is_cancelled else 500
            return problem(status, "job_ended", f"The job was {job.status}.", job_id=job.id)
        if self.is_warm and "prefer" not in request.headers:
            await _end_of(job, job.seconds + 1)
        if job.is_final:
            return JSONResponse(self._result(job), headers={"X-Job-Id": job.id})
        headers = {"Location": f"/v1/jobs/{job.id}", "Retry-After": "1"}
        return JSONResponse(self._view(job), 202, headers=headers)

    def _accept(self, key: str, body: dict[str, Any]) -> FakeJob:
        job = FakeJob(
            id=str(uuid4()),
            body=body,
            seconds=self.seconds,
            fails=body["prompt"] in self.failing_prompts,
            seed=body.get("seed", 1000 + len(self.jobs)),
        )
        self.jobs[job.id] = job
        self.keys[key] = (job.id, body)
        return job

    def _view(self, job: FakeJob) -> dict[str, Any]:
        step = min(_STEPS, int(_STEPS * job.age / job.seconds))
        phase = {"queued": "reading file 43%", "running": f"step {step} of {_STEPS}"}
        failure = {"code": "generation_failed", "message": "The model said no."}
        is_success = job.status == "succeeded"
        return {
            "id": job.id,
            "app": APP,
            "model": "tiny",
            "status": job.status,
            "phase": phase.get(job.status),
            "progress": {"step": step, "steps": _STEPS},
            "position": 0 if job.status == "queued" else None,
            "eta_seconds": None,
            "attempt": 1,
            "created_at": "2026-11-23T13:00:00Z",
            "started_at": None,
            "finished_at": "2026-11-23T13:00:02Z" if job.is_final else None,
            "result": self._result(job) if is_success else None,
            "error": failure if job.status == "failed" else None,
            "compute_metrics": {"query_duration_seconds": 2.0} if is_success else None,
            "links": {"self": f"/v1/jobs/{job.id}"},
        }

    def _result(self, job: FakeJob) -> dict[str, Any]:
        count = job.body.get("num_images", 1)
        kind = job.body.get("format", "base64").replace("base64", "png")
        uris = [
            f"data:image/{kind};base64,{base64.b64encode(picture(job.seed + k)).decode()}"
            for k in range(count)
        ]
        is_expired = job.id in self.expired_ids
        result: dict[str, Any] = {
            "status": "success",
            "model": "tiny",
            "image": None if is_expired else uris[0],
            "prompt": job.body["prompt"],
            "parameters": {**job.body, "seed": job.seed, "num_images": count},
            "job_id": job.id,
            "compute_metrics": {"query_duration_seconds": 2.0},
        }
        return result | ({"images": uris} if count > 1 and not is_expired else {})


async def _end_of(job: FakeJob, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    # In a loop: uvloop fires timers up to a millisecond early, which would be before the end.
    while not job.is_final and (left := deadline - time.monotonic()) > 0:  # noqa: ASYNC110
        await anyio.sleep(max(0.001, min(left, job.seconds - job.age)))


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    job_id: str | None = None,
    retry_after: int | None = None,
) -> JSONResponse:
    """An RFC 9457 answer."""
    body = {"type": f"urn:sdserve:problem:{code}", "title": code, "status": status}
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    content = {**body, "detail": detail} | ({"job_id": job_id} if job_id else {})
    return JSONResponse(content, status, headers, media_type="application/problem+json")


def proxy_not_found() -> Response:
    """What Ray Serve's own proxy says while an app is being started."""
    return PlainTextResponse("Path '/sd-tiny/v1/generate' not found.", 404)


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for what another thread or process is about to do."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        time.sleep(0.01)
