"""The request that comes most, a look at a job with no query, on the shortest way. ASGI.

FastAPI solves a route's dependencies anew for every request. Of a poll that only looks there is
nothing to solve, and that took longer than the look itself (docs/performance.md).
"""

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.job_routes import JOBS, JobRoutes
from api.key_check import route_path
from api.problems import problem_of
from sdserve.errors import SdServeError


class PlainPoll:
    """Answers it as the route does, behind the same checks; all else goes on to `app`."""

    def __init__(self, app: ASGIApp, *, jobs: JobRoutes) -> None:
        self._app = app
        self._jobs = jobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        job_id = _job_id(scope)
        if job_id is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        try:
            answer = await self._jobs.look(job_id, request.state.caller)
        except SdServeError as error:
            answer = problem_of(error, request)
        await answer(scope, receive, send)


def _job_id(scope: Scope) -> str | None:
    """Of the job that is polled; None: this is another request."""
    if scope["type"] != "http" or scope["method"] != "GET" or scope["query_string"]:
        return None
    folder, _, job_id = route_path(scope).rpartition("/")
    return job_id if folder == JOBS and job_id else None
