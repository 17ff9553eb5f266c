"""The upload of a batch: lines checked as they arrive, kept in compressed parts. No store.

The body is never held as a whole: what is kept of it is what is stored of it.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect

from api.hang_up import ClientGoneError
from api.problems import MAX_ERRORS, MAX_NAME, FieldProblem, HttpProblemError
from api.schemas import GenerateRequest
from sdserve.apps import AppSpec
from sdserve.batches import PART, BatchLine, dump_lines, pack_lines
from sdserve.errors import AppNotFoundError, InvalidParameterError
from sdserve.generation import ImageFormat
from sdserve.limits import BatchLimits
from sdserve.webhook_targets import MAX_URL

JSON_LINES = ("application/jsonl", "application/x-ndjson")  # no simple type of CORS
MAX_LINE_BYTES = 64 * 1024  # a prompt of 2,000 characters, escaped, is 24 kB

AppName = Annotated[str, Field(min_length=1, max_length=200)]


class BatchLineBody(GenerateRequest):
    """A line of a batch: a request, the app that it is for, and the client's own name for it."""

    app: AppName | None = Field(default=None, description="the batch's own when absent")
    custom_id: str | None = Field(
        default=None, min_length=1, max_length=200, description="comes back with the result"
    )


class BatchBody(BaseModel):
    """A batch as one JSON object."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"app": "sd-xl", "defaults": {"width": 512}, "lines": [{"prompt": "a red circle"}]}
            ]
        },
    )

    app: AppName | None = Field(default=None, description="for lines that name none")
    defaults: dict[str, Any] = Field(
        default_factory=dict[str, Any], description="request fields for lines that lack them"
    )
    webhook: str | None = Field(
        default=None,
        max_length=MAX_URL,
        description="https URL that is told of the batch's end (Standard Webhooks)",
    )
    lines: list[dict[str, Any]] = Field(min_length=1)


class Upload:
    """The lines of one upload, so far."""

    def __init__(
        self,
        *,
        app: str | None,
        defaults: Mapping[str, Any],
        specs: Mapping[str, AppSpec],
        limits: BatchLimits,
        webhook: str | None,
        check_webhook: Callable[[str | None], str | None],
    ) -> None:
        """Be empty.

        Args:
            app: the app of lines that name none.
            defaults: request fields of lines that do not set their own.
            specs: what is deployed.
            limits: of one batch.
            webhook: URL that is told of the batch's end.
            check_webhook: checks such a URL.

        Raises:
            InvalidParameterError: no webhook goes there.
            HttpProblemError: 422, the defaults have a field that no request has.
        """
        self._app = app
        self._specs = specs
        self._limits = limits
        self.webhook = check_webhook(webhook)
        self._check_webhook = check_webhook
        options = json.dumps([app, dict(defaults), webhook], sort_keys=True)
        self._digest = hashlib.sha256(options.encode())
        self._faults = list[FieldProblem]()
        self._part = list[BatchLine]()
        self._defaults = dict(defaults)
        if unknown := sorted(set(defaults) - set(GenerateRequest.model_fields)):
            fault = FieldProblem(field=f"defaults.{unknown[0]}"[:MAX_NAME], message="no such field")
            raise _invalid([fault], "The defaults are wrong")
        self._bytes = 0  # of its lines in full
        self.lines = 0
        self.parts = list[bytes]()  # of pack_lines
        self.apps_of_part = list[frozenset[int]]()
        self.lines_of_app = dict[str, int]()

    @property
    def digest(self) -> str:
        """What tells two uploads under one Idempotency-Key apart: their bytes and their options."""
        return self._digest.hexdigest()

    def note(self, data: bytes) -> None:
        """These bytes are part of the upload."""
        self._digest.update(data)

    def add_texts(self, texts: Iterable[bytes]) -> None:
        """Lines of JSON Lines."""
        for text in texts:
            self._add_text(text)

    def _add_text(self, text: bytes) -> None:
        if not self._counts():
            return
        if len(text) > MAX_LINE_BYTES:
            self._fault("line", f"is longer than {MAX_LINE_BYTES} bytes")
            return
        if not text.strip():
            self._fault("line", "is blank: remove it")
            return
        try:
            given = _OBJECT.validate_json(text)
        except ValidationError:
            self._fault("line", 'is not a JSON object like {"prompt": "a red circle"}')
            return
        self._check(given)

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Lines of a JSON list."""
        for given in lines:
            if self._counts():
                self._check(given)

    def finish(self) -> None:
        """The upload is complete.

        Raises:
            HttpProblemError: 422 with the faults, 413 too many lines or, with its defaults, bytes.
        """
        if self.lines > self._limits.lines:
            message = (
                f"The batch has more than {self._limits.lines} lines: send several, or have "
                "SD_MAX_BATCH_LINES raised."
            )
            raise HttpProblemError(413, "batch_too_large", message)
        self._pack()
        if self._bytes > self._limits.full_bytes:
            message = (
                f"With its defaults in every line the batch is larger than "
                f"{self._limits.full_bytes} bytes: send several, or have SD_MAX_BATCH_BYTES raised."
            )
            raise HttpProblemError(413, "batch_too_large", message)
        if self._faults:
            raise _invalid(self._faults, "Nothing was accepted")
        if not self.lines:
            fault = FieldProblem(field="lines", message="there is none: send at least one line")
            raise _invalid([fault], "Nothing was accepted")

    def _counts(self) -> bool:
        """Count a line. False: what it says does not matter any more."""
        self.lines += 1
        is_small = self.lines <= self._limits.lines and self._bytes <= self._limits.full_bytes
        return is_small and len(self._faults) < MAX_ERRORS

    def _check(self, given: Mapping[str, Any]) -> None:
        try:
            body = BatchLineBody.model_validate({**self._defaults, **given})
        except ValidationError as error:
            for item in error.errors()[: MAX_ERRORS - len(self._faults)]:
                name = ".".join(str(part) for part in item["loc"]) or "line"
                self._fault(name, item["msg"])
            return
        app = body.app or self._app
        if app is None:
            self._fault("app", "is missing, and the batch names none")
            return
        spec = self._specs.get(app)
        if spec is None:
            self._fault("app", str(AppNotFoundError(app, list(self._specs))))
            return
        try:
            params = body.to_params(spec.defaults, ImageFormat.BASE64)
            webhook = self._check_webhook(body.webhook)
        except InvalidParameterError as error:
            self._fault(error.field, error.message)
            return
        line = BatchLine(
            number=self.lines,
            app=app,
            custom_id=body.custom_id,
            priority=body.priority,
            webhook=webhook,
            params=params,
        )
        self.lines_of_app[app] = self.lines_of_app.get(app, 0) + 1
        self._part.append(line)
        if len(self._part) == PART:
            self._pack()

    def _pack(self) -> None:
        if self._part and not self._faults:
            apps = list(self.lines_of_app)
            full = dump_lines(self._part)
            self._bytes += len(full)
            self.parts.append(pack_lines(full))
            self.apps_of_part.append(frozenset(apps.index(line.app) for line in self._part))
        self._part = []

    def _fault(self, field: str, message: str) -> None:
        self._faults.append(FieldProblem(field=field[:MAX_NAME], message=message, line=self.lines))


async def read_lines(upload: Upload, body: AsyncIterator[bytes]) -> None:
    """Add the lines of a body of JSON Lines as they arrive.

    In a thread, for an upload is seconds of checks, and others are to be answered meanwhile.
    """
    rest = b""
    async for data in body:
        rest = await asyncio.to_thread(_add_piece, upload, rest, data)
    if rest.strip():
        upload.add_texts([rest])


def _add_piece(upload: Upload, before: bytes, data: bytes) -> bytes:
    """Add the lines that end in `data`. Returns the beginning of the next one."""
    upload.note(data)
    *whole, tail = (before + data).split(b"\n")
    upload.add_texts(whole)
    # What is too long to be a line is not collected: it is refused where it ends.
    return tail[: MAX_LINE_BYTES + 1]


async def read_json(body: AsyncIterator[bytes]) -> BatchBody:
    """A body that is a batch as one JSON object, or a list of its lines.

    Raises:
        HttpProblemError: 422, it is neither.
    """
    whole = b"".join([data async for data in body])
    try:
        return _BODY.validate_json(whole)
    except ValidationError as error:
        faults = [
            FieldProblem(
                field=".".join(map(str, item["loc"]))[:MAX_NAME] or "body", message=item["msg"]
            )
            for item in error.errors()[:MAX_ERRORS]
        ]
        raise _invalid(faults, "The body is no batch") from error


async def limited(
    body: AsyncIterator[bytes], *, max_bytes: int, silence: timedelta, setting: str
) -> AsyncIterator[bytes]:
    """A body in pieces.

    Raises:
        HttpProblemError: 413 it is larger than `max_bytes`; 408 nothing came for `silence`.
        ClientGoneError: the client hung up.
    """
    pieces, size = aiter(body), 0
    while True:
        try:
            async with asyncio.timeout(silence.total_seconds()):
                piece = await anext(pieces, None)
        except TimeoutError as error:
            message = f"Nothing of the body arrived for {silence.total_seconds():g} s: send it on."
            raise HttpProblemError(408, "body_timeout", message) from error
        except ClientDisconnect as error:
            raise ClientGoneError from error
        if piece is None:
            return
        size += len(piece)
        if size > max_bytes:
            message = (
                f"The body is larger than {max_bytes} bytes: send less, or have {setting} raised."
            )
            raise HttpProblemError(413, "body_too_large", message)
        yield piece


def _read_list(value: object) -> object:
    return {"lines": value} if isinstance(value, list) else value


def _invalid(faults: list[FieldProblem], what: str) -> HttpProblemError:
    said = "; ".join(
        (f"line {fault.line}: " if fault.line else "") + f"{fault.field}: {fault.message}"
        for fault in faults
    )
    return HttpProblemError(422, "invalid_request", f"{what}: {said}", errors=faults)


_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
_BODY: TypeAdapter[BatchBody] = TypeAdapter(Annotated[BatchBody, BeforeValidator(_read_list)])
