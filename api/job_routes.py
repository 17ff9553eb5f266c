"""The routes of jobs, the same in the gateway and in every app."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response

from api.caller import Caller, KnownCaller
from api.edge import Edge
from api.estimate import retry_after
from api.event_stream import MEDIA_TYPE, event_stream
from api.hang_up import CLIENT_GONE, ClientGoneError, unless_gone
from api.held import HOLDS, HOLDS_POLL
from api.openapi import ETAG, IMAGES, RETRY_AFTER, SEED, event
from api.preferences import LongPoll
from api.problems import HttpProblemError, problem_responses
from api.schemas import JobList, JobResponse, PreviewBody
from sdserve.errors import JobNotFoundError
from sdserve.generation import MAX_IMAGES
from sdserve.job_list import CURSOR, ListJobs, ListPlace
from sdserve.jobs import JobStatus
from sdserve.operations import Cancel, Seen

JobId = Annotated[
    str,
    Path(
        description="the id of a 200 or 202 answer (UUIDv7)",
        json_schema_extra={"format": "uuid"},
    ),
]
AppName = Annotated[str | None, Query(max_length=100, description="only jobs of this app")]
Cursor = Annotated[
    str | None, Query(pattern=CURSOR, description="`next_cursor` of the page before, whole")
]
Previews = Annotated[bool, Query(description="also small pictures of what is being drawn")]
LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="of the last event that was received")
]
VERSION = {"type": "string", "pattern": r"^\d+$"}
ImageNumber = Annotated[int, Path(ge=0, le=MAX_IMAGES - 1)]

JOBS = "/v1/jobs"
MAX_PAGE = 100  # jobs

_JOB_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the job; `Retry-After` while it is not final",
        "headers": {"Retry-After": RETRY_AFTER},
    },
    **problem_responses(404, 410),
}
_IMAGE_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the image",
        "content": IMAGES,
        "headers": {"ETag": ETAG, "X-Seed": SEED | {"required": True}},
    },
    **problem_responses(404, 410),
}
_EVENTS_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "`event: job` with a JobResponse (without its images), its `id` the job's "
        "version; `event: preview` with a PreviewBody; the stream ends with the job",
        "content": {
            MEDIA_TYPE: {
                "schema": {
                    "oneOf": [
                        event("job", {"$ref": "#/components/schemas/JobResponse"}, id=VERSION),
                        event("preview", PreviewBody.model_json_schema()),
                    ]
                }
            }
        },
    },
    **problem_responses(404, 410),
}
_CANCEL_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "it was queued: it is cancelled"},
    202: {
        "model": JobResponse,
        "description": "running: it stops within a step",
        "headers": {"Retry-After": RETRY_AFTER},
    },
    **problem_responses(404, 409, 410),
}


class JobRoutes:
    """Look at, wait for, collect and cancel jobs; of one app only when `app` is given."""

    def __init__(self, edge: Edge, app: str | None = None) -> None:
        self._edge = edge
        self._app = app

    def router(self) -> APIRouter:
        router = APIRouter(prefix=JOBS, tags=["jobs"])
        router.get("", name="list")(self.jobs)
        router.get(
            "/{job_id}",
            name="get",
            response_model=JobResponse,
            responses=_JOB_ANSWERS,
            dependencies=[HOLDS_POLL],
        )(self.job)
        router.delete("/{job_id}", response_model=JobResponse, responses=_CANCEL_ANSWERS)(
            self.cancel
        )
        router.get(
            "/{job_id}/events",
            response_class=Response,
            responses=_EVENTS_ANSWERS,
            dependencies=[HOLDS],
        )(self.events)
        for path, answer in (("", self.first_image), ("/{number}", self.image)):
            router.get("/{job_id}/image" + path, response_class=Response, responses=_IMAGE_ANSWERS)(
                answer
            )
        return router

    async def jobs(
        self,
        caller: KnownCaller,
        app: AppName = None,
        status: Annotated[JobStatus | None, Query(description="only jobs of this status")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="jobs of a page")] = 20,
        cursor: Cursor = None,
    ) -> JobList:
        """Your jobs, newest first, for as long as they are known; an admin's list has all."""
        if self._app is not None and app not in (None, self._app):
            return JobList(data=[], next_cursor=None)
        page = await self._edge.store.run(
            ListJobs(
                client=None if caller.is_admin else caller.client,
                app=self._app or app,
                status=status,
                limit=limit,
                after=None if cursor is None else ListPlace.read(cursor),
            )
        )
        apps = sorted({job.app for job in page.jobs if not job.status.is_final})
        statuses = dict(zip(apps, await self._edge.store.statuses(apps), strict=True))
        return JobList(
            data=[JobResponse.of(job, statuses.get(job.app), []) for job in page.jobs],
            next_cursor=page.last.cursor if page.last else None,
        )

    async def job(
        self,
        job_id: JobId,
        caller: KnownCaller,
        request: Request,
        wait: LongPoll = 0,
    ) -> Response:
        """The job as it stands, or as soon as it is final."""
        seen = await self._own(job_id, caller)
        if wait and not seen.job.status.is_final:
            try:
                seen = await unless_gone(request.receive, self._edge.wait(job_id, wait))
            except ClientGoneError:  # whose place another may have
                return Response(status_code=CLIENT_GONE)
        return await self._answer(seen)

    async def look(self, job_id: str, caller: Caller) -> Response:
        """As `job` for who waits for nothing."""
        return await self._answer(await self._own(job_id, caller))

    async def events(
        self,
        job_id: JobId,
        caller: KnownCaller,
        last_event_id: LastEventId = None,
        *,
        previews: Previews = False,
    ) -> Response:
        """Every change of the job as it happens (Server-Sent Events), until its end."""
        job = (await self._own(job_id, caller)).job
        return event_stream(self._edge.viewers, job, previews=previews, last_event_id=last_event_id)

    async def cancel(self, job_id: JobId, caller: KnownCaller) -> Response:
        """Cancel: a queued job at once (200), a running one within a step (202)."""
        job = (await self._own(job_id, caller)).job
        cancel = Cancel(app=job.app, job_id=job.id, job_ttl=self._edge.settings.job_ttl)
        was = await self._edge.store.run(cancel)
        if was not in (JobStatus.RUNNING, JobStatus.QUEUED, JobStatus.CANCELLED):
            message = f"Job {job.id} is {was or 'gone'} already: there is nothing to cancel."
            raise HttpProblemError(409, "job_is_final", message)
        status = 202 if was is JobStatus.RUNNING else 200
        return await self._answer(await self._edge.look(job_id), status)

    async def first_image(self, job_id: JobId, caller: KnownCaller) -> Response:
        """The bytes of the first image."""
        return await self.image(job_id, 0, caller)

    async def image(self, job_id: JobId, number: ImageNumber, caller: KnownCaller) -> Response:
        """The bytes of one image, counted from 0."""
        picture = await self._edge.image((await self._own(job_id, caller)).job, number)
        # A result never changes, so its name is its version.
        headers = {
            "ETag": f'"{job_id}-{number}"',
            "Cache-Control": "private, immutable, max-age=3600",
            "X-Seed": str(picture.seed),
        }
        return Response(picture.data, media_type=picture.media_type, headers=headers)

    async def _own(self, job_id: str, caller: Caller) -> Seen:
        seen = await self._edge.look_of(caller, job_id)
        if self._app is not None and seen.job.app != self._app:
            raise JobNotFoundError(job_id)
        return seen

    async def _answer(self, seen: Seen, status: int = 200) -> Response:
        body = JobResponse.of(seen.job, seen.app, await self._edge.images(seen))
        headers = dict[str, str]()
        if not seen.job.status.is_final:
            headers["Retry-After"] = str(retry_after(body.eta_seconds, seen.app))
        # Made by us, as it is: FastAPI would check again what was just built.
        return Response(body.model_dump_json(), status, headers, media_type="application/json")
