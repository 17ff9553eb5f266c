"""The routes of one app: put generations into the queue, wait when a replica is free.

They know Redis and the app's specification; they never touch the model. Those of all apps live in
the processes of the gateway (dispatch.py).
"""

import hashlib
import math
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request, Response
from starlette.types import Receive

from api.allowances import allowances, allowances_of, note_allowances, rate_headers
from api.caller import KnownCaller, SeesDetails
from api.edge import Edge
from api.estimate import full_queue_retry_after, full_server_retry_after, retry_after
from api.hang_up import CLIENT_GONE, ClientGoneError, unless_gone
from api.job_events import End
from api.job_routes import JobRoutes
from api.layers import ALIVE, HEALTH, add_layers
from api.openapi import (
    IMAGES,
    JOB_ID,
    LOCATION,
    PREFERENCE_APPLIED,
    RATE_LIMIT,
    RETRY_AFTER,
    SEED,
    Api,
)
from api.preferences import MAX_KEY_LENGTH, Preference, idempotency_key, preference, raw_format
from api.problems import HttpProblemError, problem, problem_responses
from api.schemas import (
    GenerateRequest,
    GenerateResponse,
    HealthResponse,
    JobResponse,
    ModelBody,
    ModelList,
    ProcessAlive,
)
from sdserve.apps import AppSpec, AppState, AppStatus
from sdserve.errors import (
    AppBrokenError,
    ClientFullError,
    ClientQueueFullError,
    GpuSpentError,
    IdempotencyConflictError,
    ImagesSpentError,
    OutOfMemoryError,
    OverloadError,
    QueueFullError,
    QuotaError,
    ServerFullError,
    StorageFullError,
    StoreUnavailableError,
    TooManyWebhooksError,
)
from sdserve.generation import ImageFormat
from sdserve.jobs import JobFailure, JobStatus, new_job_id
from sdserve.operations import (
    END_OF_QUEUE,
    Admission,
    Seen,
    Submit,
    Submitted,
    ViewApp,
    ViewOutlooks,
)

Prefer = Annotated[
    list[str] | None, Header(description="respond-async, wait=N (RFC 7240), also both")
]
# OpenAPI has the media types of the answers instead of this header (3.1.1, section 4.8.12.1).
Accept = Annotated[str | None, Header(include_in_schema=False)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="same key, same job (24 h)",
        # Checked by us: a header that is wrong is a 400.
        json_schema_extra={"minLength": 1, "maxLength": MAX_KEY_LENGTH, "pattern": r"\S"},
    ),
]

WEBHOOKS_RETRY = 60  # seconds: a receiver that fails is tried again by then
_ALWAYS = {"X-Job-Id": JOB_ID, "Preference-Applied": PREFERENCE_APPLIED, **RATE_LIMIT}
_LINKS: dict[str, Any] = {
    name: {"operationId": f"jobs_{name}", "parameters": {"job_id": "$response.header.X-Job-Id"}}
    for name in ("get", "cancel", "first_image", "image")
}
_LINKS["image"]["parameters"]["number"] = 0
_GENERATE_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the picture, or with `Accept` the bytes of the first one",
        "content": IMAGES,
        "headers": {**_ALWAYS, "X-Seed": SEED},
        "links": _LINKS,
    },
    202: {
        "model": JobResponse,
        "description": "cold or busy: poll the job",
        "headers": {**_ALWAYS, "Location": LOCATION, "Retry-After": RETRY_AFTER},
        "links": _LINKS,
    },
    **problem_responses(400, 406, 409, 422, 429, 500, 503),
}


def create_app(spec: AppSpec, edge: Edge) -> FastAPI:
    """The FastAPI application of one checkpoint. Who serves it runs the edge."""
    app = Api(
        title=f"sdserve: {spec.checkpoint.name}",
        summary=f"{spec.checkpoint.path.name} ({spec.checkpoint.kind}) as an endpoint",
        defaults=spec.defaults,
    )
    jobs = JobRoutes(edge, spec.name)
    add_layers(app, edge, jobs)
    front = Ingress(spec, edge)
    app.post(
        "/v1/generate",
        tags=["generate"],
        response_model=GenerateResponse,
        responses=_GENERATE_ANSWERS,
    )(front.generate)
    shown_key = problem_responses(401)
    app.get(HEALTH, tags=["health"], responses=shown_key)(front.health)
    app.get(f"{HEALTH}/ready", tags=["health"], responses=shown_key)(front.ready)
    app.get(ALIVE, tags=["health"])(front.live)
    app.get("/v1/models", tags=["models"])(front.models)
    app.include_router(jobs.router())
    return app


class Ingress:
    """The routes of one app."""

    def __init__(self, spec: AppSpec, edge: Edge) -> None:
        self._spec = spec
        self._edge = edge

    async def generate(
        self,
        body: GenerateRequest,
        request: Request,
        caller: KnownCaller,
        prefer: Prefer = None,
        accept: Accept = None,
        key: IdempotencyKey = None,
    ) -> Response:
        """Draw a picture: 200 when a warm replica is free, else 202 with the job."""
        wanted, raw = preference(prefer or []), raw_format(accept)
        if raw and body.format and body.format.media_type != raw.media_type:
            message = f"Accept asks for {raw.media_type}, format for {body.format}: use one."
            raise HttpProblemError(406, "not_acceptable", message)
        job_id = new_job_id()
        submit = Submit(
            job_id=job_id,
            app=self._spec.name,
            model=self._spec.checkpoint.name,
            params=body.to_params(self._spec.defaults, raw or ImageFormat.BASE64),
            queue_limit=self._spec.queue_limit,
            digest=_digest(body),
            client=caller.client,
            limits=self._edge.limits_of(caller),
            idempotency_key=idempotency_key(key),
            priority=body.priority,
            webhook=self._edge.webhook(body.webhook),
        )
        with self._edge.expecting(job_id) as end:
            submitted = await self._submit(request, submit)
            hold = self._hold(wanted, submitted)
            if hold and not self._edge.held.has_room(caller.client):
                # Its job is accepted: rather than refuse to wait, say so at once.
                hold, wanted = 0.0, replace(wanted, wait=None)
            is_new = submitted.job_id == job_id
            try:
                with self._edge.held.place(caller.client) if hold else nullcontext():
                    seen = await self._outcome(
                        request.receive, submitted.job_id, hold, end if is_new else None, key=key
                    )
                response = await self._answer(seen, raw, is_async=wanted.is_async and not hold)
            except StoreUnavailableError as error:
                error.job_id = submitted.job_id  # in Redis: sent again it would be drawn twice
                raise
            except ClientGoneError:
                return Response(status_code=CLIENT_GONE)
        response.headers["X-Job-Id"] = submitted.job_id
        response.headers.update(rate_headers(allowances_of(request)))
        applied = wanted.applied(is_async=response.status_code == 202)
        if applied:
            response.headers["Preference-Applied"] = applied
        return response

    async def _outcome(
        self, receive: Receive, job_id: str, hold: float, end: End | None, *, key: str | None
    ) -> Seen:
        """The job once it is final, or as it stands after `hold` seconds.

        Raises:
            ClientGoneError: its client hung up; with a key he may come back for it, so it goes on.
        """
        if not hold:  # a 202 tells him the id
            return await self._edge.look(job_id)
        if key is not None:
            return await unless_gone(receive, self._edge.wait(job_id, hold, end))
        return await self._edge.wait_for(receive, self._spec.name, job_id, hold, end)

    async def health(self, has_details: SeesDetails) -> HealthResponse:
        """200 when the app can accept work (a cold app can); 503 when it is broken."""
        status = await self._status()
        if status.state is AppState.BROKEN:
            reason = status.broken_reason or ""
            raise AppBrokenError(self._spec.name, reason if has_details else "An admin sees why.")
        return HealthResponse.of(self._spec.name, status, has_details=has_details)

    async def ready(self, has_details: SeesDetails) -> HealthResponse:
        """The same as /v1/health (readiness probe)."""
        return await self.health(has_details)

    async def live(self) -> ProcessAlive:
        """This process answers (liveness probe)."""
        return ProcessAlive()

    async def models(self, _caller: KnownCaller) -> ModelList:
        """This app's checkpoint in the OpenAI list shape."""
        (sha256,) = await self._edge.store.sha256s([self._spec.checkpoint.file])
        (outlook,) = await self._edge.store.run(ViewOutlooks(apps=(self._spec.name,)))
        return ModelList(data=[ModelBody.of(self._spec, outlook, sha256)])

    async def _status(self) -> AppStatus:
        return await self._edge.store.run(ViewApp(app=self._spec.name))

    async def _submit(self, request: Request, operation: Submit) -> Submitted:
        submitted = await self._edge.store.run(operation)
        if submitted.standing:
            note_allowances(request, allowances(operation.limits.client, submitted.standing))
        match submitted.admission:
            case Admission.CONFLICT:
                raise IdempotencyConflictError(submitted.job_id)
            case Admission.BROKEN:
                raise AppBrokenError(operation.app, submitted.reason or "")
            case (
                Admission.FULL
                | Admission.SERVER_FULL
                | Admission.CLIENT_FULL
                | Admission.CLIENT_QUEUE_FULL
            ):
                full = ViewApp(app=operation.app, before=END_OF_QUEUE)
                status = await self._edge.store.run(full)
                is_own = submitted.admission is Admission.FULL
                wait = (full_queue_retry_after if is_own else full_server_retry_after)(status)
                raise _no_room(submitted, operation.app, wait)
            case Admission.IMAGES_SPENT | Admission.GPU_SPENT:
                raise _spent(submitted, operation)
            case Admission.WEBHOOKS_FULL:
                raise TooManyWebhooksError(submitted.ahead, WEBHOOKS_RETRY)
            case Admission.STORAGE_FULL:
                wait = math.ceil((submitted.room_after or timedelta(0)).total_seconds()) + 1
                raise StorageFullError("The memory for results is used up", wait)
            case _:
                return submitted

    def _hold(self, wanted: Preference, submitted: Submitted) -> float:
        """Seconds to hold this request."""
        if wanted.hold is not None:
            return wanted.hold
        is_free = submitted.admission is Admission.RUN_NOW
        return self._edge.settings.sync_wait.total_seconds() if is_free else 0.0

    async def _answer(self, seen: Seen, raw: ImageFormat | None, *, is_async: bool) -> Response:
        job = seen.job
        # Who asked for a 202 at once gets one, also when the job was quicker than this look at it.
        if is_async or not job.status.is_final:
            body = JobResponse.of(job, seen.app, await self._edge.images(seen))
            headers = {"Location": f"/v1/jobs/{job.id}"}
            if not job.status.is_final:
                headers["Retry-After"] = str(retry_after(body.eta_seconds, seen.app))
            return Response(body.model_dump_json(), 202, headers, media_type="application/json")
        if job.status is JobStatus.CANCELLED:
            message = f"Job {job.id} was cancelled."
            return problem(409, "job_cancelled", message, job_id=job.id)
        if job.metrics is None:
            error = job.error or JobFailure(code="internal_error", message="No reason was kept.")
            status_code = 422 if error.code == OutOfMemoryError.code else 500
            return problem(status_code, error.code, error.message, job_id=job.id)
        images = await self._edge.images(seen)
        if raw and images:
            headers = {"X-Seed": str(images[0].seed)}
            return Response(images[0].data, media_type=images[0].media_type, headers=headers)
        body = GenerateResponse.of(job, job.metrics, images)
        # Serialised once, here: a megabyte of base64 goes through no second encoder.
        return Response(body.model_dump_json(), media_type="application/json")


def _no_room(refused: Submitted, app: str, retry_after: int) -> OverloadError:
    count = refused.ahead
    match refused.admission:
        case Admission.SERVER_FULL:
            return ServerFullError(f"The server is full ({count} unfinished jobs)", retry_after)
        case Admission.CLIENT_FULL:
            return ClientFullError(f"You have {count} unfinished jobs, the limit", retry_after)
        case Admission.CLIENT_QUEUE_FULL:
            return ClientQueueFullError(f"You have {count} queued jobs, the limit", retry_after)
        case _:
            return QueueFullError(f"The queue of '{app}' is full ({count} jobs wait)", retry_after)


def _spent(refused: Submitted, operation: Submit) -> QuotaError:
    """A quota of the day: there is more when the next one begins."""
    left = refused.standing.day_left if refused.standing else timedelta(days=1)
    wait, quotas = math.ceil(left.total_seconds()), operation.limits.client
    if refused.admission is Admission.GPU_SPENT:
        used = f"{refused.ahead / 1000:.0f} of {quotas.gpu_seconds_per_day} GPU seconds"
        return GpuSpentError(f"You have used {used} of this day (UTC)", wait)
    used = f"{refused.ahead} of {quotas.images_per_day} images"
    more = operation.params.num_images
    return ImagesSpentError(f"You have {used} of this day (UTC) and ask for {more} more", wait)


def _digest(body: GenerateRequest) -> str:
    """What tells two bodies under one Idempotency-Key apart: the fields sent, not their order."""
    sent = body.model_dump_json(exclude_unset=True).encode()
    return hashlib.blake2b(sent, digest_size=16).hexdigest()
