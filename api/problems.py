"""Errors as RFC 9457 `application/problem+json`: one handler for ours, FastAPI's and the rest."""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match

from api.allowances import allowances_of, rate_headers
from sdserve.errors import (
    AppBrokenError,
    AppNotFoundError,
    BatchEndedError,
    BatchNotFoundError,
    GenerationError,
    IdempotencyConflictError,
    InvalidParameterError,
    JobExpiredError,
    JobNotFoundError,
    OutOfMemoryError,
    OverloadError,
    QuotaError,
    SdServeError,
    StoreUnavailableError,
    UnauthorizedError,
)

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:sdserve:problem:"
STORE_RETRY_AFTER = 5  # seconds
MAX_ERRORS, MAX_NAME = 20, 100  # fields named in one answer, characters of a name

_STATUS: list[tuple[type[SdServeError], int]] = [
    (InvalidParameterError, 422),
    (IdempotencyConflictError, 422),
    (QuotaError, 429),
    (OverloadError, 503),
    (AppBrokenError, 503),
    (AppNotFoundError, 404),
    (UnauthorizedError, 401),
    (JobNotFoundError, 404),
    (BatchNotFoundError, 404),
    (BatchEndedError, 409),
    (JobExpiredError, 410),
    (OutOfMemoryError, 422),
    (GenerationError, 500),
    (StoreUnavailableError, 503),
]


class FieldProblem(BaseModel):
    """One field that is wrong."""

    field: str
    message: str
    line: int | None = Field(default=None, description="of the upload of a batch, from 1")


class Problem(BaseModel):
    """RFC 9457: what went wrong and what to do next."""

    type: str = Field(description="stable, e.g. urn:sdserve:problem:queue_full")
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] | None = None
    job_id: str | None = None


class HttpProblemError(Exception):
    """A problem of HTTP itself (a bad header, say) rather than of the kernel."""

    def __init__(
        self, status: int, code: str, detail: str, *, errors: list[FieldProblem] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.errors = errors


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Declare that a route may answer these errors; api/openapi.py describes them.

    Those of the layers around every route (401, 403, 408, 413, 421, 500, 503) it adds by itself.
    """
    return {status: {"model": Problem} for status in statuses}


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    errors: list[FieldProblem] | None = None,
    job_id: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    body = Problem(
        type=TYPE_PREFIX + code,
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        errors=errors,
        job_id=job_id,
    )
    content = body.model_dump(mode="json", exclude_none=True)
    return JSONResponse(content, status, headers=headers, media_type=MEDIA_TYPE)


def problem_of(error: SdServeError, request: Request) -> JSONResponse:
    """An error of ours as the answer to this request."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    errors, job_id, headers = None, None, _headers(error, request)
    if isinstance(error, StoreUnavailableError):
        job_id = error.job_id
    if isinstance(error, InvalidParameterError):
        errors = [FieldProblem(field=error.field, message=error.message)]
    return problem(status, error.code, str(error), errors=errors, job_id=job_id, headers=headers)


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem."""

    @app.exception_handler(SdServeError)
    async def ours(request: Request, error: SdServeError) -> JSONResponse:
        return problem_of(error, request)

    @app.exception_handler(HttpProblemError)
    async def of_http(_request: Request, error: HttpProblemError) -> JSONResponse:
        return problem(error.status, error.code, str(error), errors=error.errors)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        # A body of a megabyte can have a hundred thousand faults; a person reads a few.
        errors = [
            FieldProblem(field=_field(item)[:MAX_NAME], message=item["msg"])
            for item in error.errors()[:MAX_ERRORS]
        ]
        detail = "; ".join(f"{item.field}: {item.message}" for item in errors)
        return problem(422, "invalid_request", detail, errors=errors)

    @app.exception_handler(HTTPException)
    async def starlette(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400 and error.__cause__ is not None:
            # FastAPI's answer to a body that its JSON parser fails on in an unforeseen way.
            errors = [FieldProblem(field="body", message="this is not JSON that can be read")]
            return problem(422, "invalid_request", errors[0].message, errors=errors)
        headers = dict(error.headers) if error.headers else None
        if error.status_code == 405:
            # Starlette names the methods of one route; the path may have several.
            headers = {"Allow": ", ".join(sorted(_methods(request)))}
        code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        detail = f"{request.method} {request.url.path}: {error.detail}. The routes are in /docs."
        return problem(error.status_code, code, detail, headers=headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        detail = "The server failed on this request; its log has the traceback."
        return problem(500, "internal_error", detail)


def _methods(request: Request) -> set[str]:
    """What the routes of this path answer."""
    routes: list[BaseRoute] = request.app.routes
    return {
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes
        )
    }


def _headers(error: SdServeError, request: Request) -> dict[str, str]:
    match error:
        case OverloadError():
            left = rate_headers(allowances_of(request)) if isinstance(error, QuotaError) else {}
            return {"Retry-After": str(error.retry_after), **left}
        case StoreUnavailableError():
            return {"Retry-After": str(STORE_RETRY_AFTER)}
        case UnauthorizedError():
            # RFC 6750, section 3: no error code for who showed nothing.
            why = ', error="invalid_token"' if error.is_token_given else ""
            return {"WWW-Authenticate": f'Bearer realm="sdserve"{why}'}
        case _:
            return {}


def _field(item: dict[str, Any]) -> str:
    """The name of the wrong field; of a body that is no JSON at all, "body"."""
    place, *names = item["loc"]
    if item["type"] == "json_invalid" or not names:
        return str(place)
    return ".".join(str(name) for name in names)
