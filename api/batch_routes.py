"""The routes of batches: many generations uploaded as one."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.batch_schemas import BatchList, BatchResponse, LineResult
from api.batch_upload import (
    JSON_LINES,
    BatchBody,
    Upload,
    limited,
    read_json,
    read_lines,
)
from api.batch_zip import zip_pictures
from api.caller import Caller, KnownCaller
from api.edge import Edge
from api.hang_up import CLIENT_GONE, ClientGoneError
from api.held import HOLDS
from api.ingress import IdempotencyKey
from api.openapi import BYTES, LOCATION
from api.preferences import idempotency_key
from api.problems import FieldProblem, HttpProblemError, problem_responses
from sdserve.batch_operations import (
    BatchAdmission,
    CloseLines,
    Closing,
    CreateBatch,
    ListBatches,
    PutPart,
    ReadPart,
    ViewBatch,
)
from sdserve.batches import Batch, BatchLine, LineState, part_of
from sdserve.errors import (
    BatchEndedError,
    BatchesFullError,
    BatchNotFoundError,
    ClientFullError,
    IdempotencyConflictError,
    StoreUnavailableError,
    TooManyWebhooksError,
)
from sdserve.jobs import is_job_id, new_job_id
from sdserve.operations import Cancel
from sdserve.webhook_targets import MAX_URL

ROUTE = "/v1/batches"
NDJSON = "application/x-ndjson"
ROOM_RETRY = 60  # seconds
MAX_PAGE = 100

BatchId = Annotated[
    str,
    Path(description="the id of a 202 answer (UUIDv7)", json_schema_extra={"format": "uuid"}),
]

_LINE_LIST: dict[str, Any] = {"items": {"type": "object"}, "minItems": 1}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            **{
                name: {
                    "schema": {
                        "type": "string",
                        "description": "one JSON object a line: request fields, app, custom_id",
                    }
                }
                for name in JSON_LINES
            },
            "application/json": {
                "schema": {
                    "anyOf": [BatchBody.model_json_schema(), {"type": "array", **_LINE_LIST}]
                }
            },
        },
    }
}
_UPLOAD_ANSWERS: dict[int | str, dict[str, Any]] = {
    202: {
        "description": "all lines are accepted",
        "headers": {
            "Location": LOCATION | {"description": "where the batch is", "example": f"{ROUTE}/01a2"}
        },
    },
    **problem_responses(400, 415, 429),
}
_ANSWERS = problem_responses(404)
_CANCEL_ANSWERS: dict[int | str, dict[str, Any]] = {
    202: {"model": BatchResponse, "description": "some jobs run: they stop within a step"},
    **problem_responses(404, 409),
}


class BatchRoutes:
    """Upload, look at, collect and cancel batches."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._limits = edge.settings.limits.batches

    def router(self) -> APIRouter:
        router = APIRouter(prefix=ROUTE, tags=["batches"])
        router.post(
            "",
            status_code=202,
            response_model=BatchResponse,
            responses=_UPLOAD_ANSWERS,
            dependencies=[HOLDS],
            openapi_extra=_BODY,
        )(self.upload)
        router.get("")(self.batches)
        router.get("/{batch_id}", name="get", responses=_ANSWERS)(self.batch)
        router.delete("/{batch_id}", responses=_CANCEL_ANSWERS)(self.cancel)
        router.get(
            "/{batch_id}/results",
            response_class=Response,
            responses={200: {"content": {NDJSON: BYTES}, "description": "a line each"}, **_ANSWERS},
            dependencies=[HOLDS],
        )(self.results)
        router.get(
            "/{batch_id}/images.zip",
            response_class=Response,
            responses={
                200: {"content": {"application/zip": BYTES}, "description": "pictures by line"},
                **_ANSWERS,
            },
            dependencies=[HOLDS],
        )(self.images)
        return router

    async def upload(
        self,
        request: Request,
        response: Response,
        caller: KnownCaller,
        app: Annotated[str | None, Query(description="for lines that name none")] = None,
        defaults: Annotated[
            str | None, Query(description="JSON object: fields for lines that lack them")
        ] = None,
        webhook: Annotated[
            str | None,
            Query(max_length=MAX_URL, description="https URL that is told of the batch's end"),
        ] = None,
        key: IdempotencyKey = None,
    ) -> BatchResponse | Response:
        """Accept a batch: JSON Lines, or one JSON object. All its lines, or none."""
        key = idempotency_key(key)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            if kind in JSON_LINES:
                upload = await self._upload_of(app, _object(defaults), webhook)
                await read_lines(
                    upload, self._limited(request, self._limits.upload_bytes, "SD_MAX_BATCH_BYTES")
                )
            elif kind == "application/json":
                most = self._edge.settings.max_body_bytes
                body = await read_json(self._limited(request, most, "SD_MAX_BODY_BYTES"))
                upload = await self._upload_of(
                    body.app or app,
                    {**_object(defaults), **body.defaults},
                    body.webhook or webhook,
                )
                upload.note(body.model_dump_json().encode())
                await asyncio.to_thread(upload.add, body.lines)
            else:
                message = f"Send the batch as {JSON_LINES[0]} or application/json."
                raise HttpProblemError(415, "unsupported_media_type", message)
        except ClientGoneError:
            return Response(status_code=CLIENT_GONE)
        await asyncio.to_thread(upload.finish)
        batch_id = await self._create(upload, caller.client, key)
        response.headers["Location"] = f"{ROUTE}/{batch_id}"
        return BatchResponse.of(await self._edge.store.run(ViewBatch(batch_id=batch_id)))

    async def batches(
        self,
        caller: KnownCaller,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
        cursor: Annotated[str, Query(description="`next_cursor` of the page before")] = "",
    ) -> BatchList:
        """One's own batches, the newest first; an administrator's are all."""
        client = None if caller.is_admin else caller.client
        ids = await self._edge.store.run(ListBatches(client=client, after=cursor, limit=limit + 1))
        found = list[BatchResponse]()
        for batch_id in ids[:limit]:
            try:
                batch = await self._edge.store.run(ViewBatch(batch_id=batch_id))
            except BatchNotFoundError:
                continue  # it has expired since
            found.append(BatchResponse.of(batch))
        return BatchList(data=found, next_cursor=ids[limit - 1] if len(ids) > limit else None)

    async def batch(self, batch_id: BatchId, caller: KnownCaller) -> BatchResponse:
        """The batch as it stands."""
        return BatchResponse.of(await self._own(batch_id, caller))

    async def cancel(
        self, batch_id: BatchId, caller: KnownCaller, response: Response
    ) -> BatchResponse:
        """Cancel what has not ended: at once (200), or running jobs within a step (202)."""
        await self._own(batch_id, caller)
        ttl = self._edge.settings.job_ttl
        if await self._edge.store.run(CloseLines(batch_id=batch_id, job_ttl=ttl)) is Closing.ENDED:
            raise BatchEndedError(batch_id)
        batch = await self._edge.store.run(ViewBatch(batch_id=batch_id))
        # The feeder does this too: what is left when we die here is cancelled all the same.
        for job_id, app in batch.live.items():
            await self._edge.store.run(Cancel(app=app, job_id=job_id, job_ttl=ttl))
        batch = await self._edge.store.run(ViewBatch(batch_id=batch_id))
        if not batch.state.is_final:
            response.status_code = 202
        return BatchResponse.of(batch)

    async def results(
        self,
        batch_id: BatchId,
        caller: KnownCaller,
        cursor: Annotated[int, Query(ge=0, description="the last line that you have")] = 0,
        limit: Annotated[int | None, Query(ge=1, description="lines; all when absent")] = None,
    ) -> Response:
        """Where each line stands, in JSON Lines and in their order."""
        batch = await self._own(batch_id, caller)
        end = batch.lines if limit is None else min(batch.lines, cursor + limit)

        async def lines() -> AsyncGenerator[bytes]:
            async for line, state in self._lines(batch, cursor, end):
                yield LineResult.of(batch, line, state).model_dump_json().encode() + b"\n"

        return StreamingResponse(lines(), media_type=NDJSON)

    async def images(self, batch_id: BatchId, caller: KnownCaller) -> Response:
        """All pictures that are still kept, as a zip with a results.jsonl."""
        batch = await self._own(batch_id, caller)
        lines = self._lines(batch, 0, batch.lines)
        headers = {"Content-Disposition": f'attachment; filename="{batch_id}.zip"'}
        return StreamingResponse(
            zip_pictures(batch, lines, self._edge.store.results),
            media_type="application/zip",
            headers=headers,
        )

    async def _lines(
        self, batch: Batch, after: int, end: int
    ) -> AsyncGenerator[tuple[BatchLine, LineState]]:
        """The lines `after`..`end` and where they stand."""
        for number in range(part_of(after + 1), part_of(end) + 1 if end else 0):
            part = await self._edge.store.run(ReadPart(batch_id=batch.id, part=number))
            for line in part.lines:
                if after < line.number <= end:
                    yield line, part.state(batch, line)

    async def _own(self, batch_id: str, caller: Caller) -> Batch:
        if not is_job_id(batch_id):
            raise BatchNotFoundError(batch_id)
        batch = await self._edge.store.run(ViewBatch(batch_id=batch_id))
        if not caller.may_see(batch.client):
            raise BatchNotFoundError(batch_id)
        return batch

    async def _upload_of(
        self, app: str | None, defaults: dict[str, Any], webhook: str | None
    ) -> Upload:
        specs = await self._edge.store.apps()
        return Upload(
            app=app,
            defaults=defaults,
            specs=specs,
            limits=self._limits,
            webhook=webhook,
            check_webhook=self._edge.webhook,
        )

    def _limited(self, request: Request, most: int, setting: str) -> AsyncIterator[bytes]:
        silence = self._edge.settings.body_timeout
        return limited(request.stream(), max_bytes=most, silence=silence, setting=setting)

    async def _create(self, upload: Upload, client: str, key: str | None) -> str:
        batch_id = new_job_id()
        for number, data in enumerate(upload.parts):
            await self._edge.store.run(PutPart(batch_id=batch_id, part=number, data=data))
        created = await self._edge.store.run(
            CreateBatch(
                batch_id=batch_id,
                client=client,
                lines=upload.lines,
                lines_of_app=upload.lines_of_app,
                apps_of_part=upload.apps_of_part,
                digest=upload.digest,
                room_limit=self._limits.room,
                client_room=self._limits.client_room,
                webhook_limit=self._edge.settings.limits.webhooks,
                webhook=upload.webhook,
                idempotency_key=key,
            )
        )
        match created.admission:
            case BatchAdmission.CONFLICT:
                raise IdempotencyConflictError(created.batch_id, what="batch")
            case BatchAdmission.FULL:
                message = f"Unfinished batches take the room of {created.taken} lines"
                raise BatchesFullError(message, ROOM_RETRY)
            case BatchAdmission.CLIENT_FULL:
                message = f"Your unfinished batches take the room of {created.taken} lines"
                raise ClientFullError(message, ROOM_RETRY)
            case BatchAdmission.WEBHOOKS_FULL:
                raise TooManyWebhooksError(created.taken, ROOM_RETRY)
            case BatchAdmission.LOST:
                raise StoreUnavailableError("Redis was too slow for this upload: send it again.")
            case _:
                return created.batch_id


def _object(text: str | None) -> dict[str, Any]:
    """The query's `defaults`."""
    if text is None:
        return {}
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        fault = FieldProblem(field="defaults", message='is no JSON object like {"width": 512}')
        raise HttpProblemError(422, "invalid_request", f"defaults: {fault.message}", errors=[fault])
    return value
