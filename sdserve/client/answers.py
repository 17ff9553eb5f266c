"""Successful answers, read into views. Pure."""

import json
from typing import Any, TypeVar

import httpx
from httpx_sse import ServerSentEvent
from pydantic import TypeAdapter, ValidationError

from sdserve.client.errors import UnexpectedAnswerError
from sdserve.client.views import BatchLineView, BatchView, JobView, Picture, Preview, UsageView

T = TypeVar("T")

EVENTS = "text/event-stream"


def json_object(response: httpx.Response) -> dict[str, Any]:
    try:
        payload = response.json()
    except ValueError as error:
        raise UnexpectedAnswerError(str(response.url), "it is not JSON") from error
    if not isinstance(payload, dict):
        raise UnexpectedAnswerError(str(response.url), "it is not a JSON object")
    return payload


def json_list(response: httpx.Response, name: str) -> list[dict[str, Any]]:
    """The list of objects that the answer has under `name`."""
    found = json_object(response).get(name)
    if not isinstance(found, list):
        raise UnexpectedAnswerError(str(response.url), f"it has no list '{name}'")
    return [item for item in found if isinstance(item, dict)]


def job_view(url: str, payload: object) -> JobView:
    return _checked(_JOB, url, payload)


def usage_view(url: str, payload: object) -> UsageView:
    return _checked(_USAGE, url, payload)


def batch_view(url: str, payload: object) -> BatchView:
    return _checked(_BATCH, url, payload)


def batch_line(url: str, text: bytes) -> BatchLineView:
    """One line of JSON Lines."""
    try:
        payload: object = json.loads(text)
    except ValueError as error:
        raise UnexpectedAnswerError(url, "a line of it is not JSON") from error
    return _checked(_BATCH_LINE, url, payload)


def picture(response: httpx.Response) -> Picture:
    media_type = response.headers.get("content-type", "").partition(";")[0]
    return Picture(data=response.content, media_type=media_type)


def require_events(response: httpx.Response) -> None:
    if not response.headers.get("content-type", "").startswith(EVENTS):
        raise UnexpectedAnswerError(str(response.url), "it is not a stream of events")


def job_of_event(url: str, event: ServerSentEvent) -> JobView:
    return _checked(_JOB, url, _event_data(url, event))


def preview_of_event(url: str, event: ServerSentEvent) -> Preview:
    """`{"step", "steps", "number", "image": "data:image/webp;base64,..."}`."""
    data = _event_data(url, event)
    try:
        return Preview(
            step=int(data["step"]),
            steps=int(data["steps"]),
            number=int(data["number"]),
            picture=Picture.of_data_uri(str(data["image"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UnexpectedAnswerError(url, "its preview cannot be read") from error


def _event_data(url: str, event: ServerSentEvent) -> dict[str, Any]:
    try:
        data = event.json()
    except ValueError as error:
        raise UnexpectedAnswerError(url, f"its event '{event.event}' is not JSON") from error
    if not isinstance(data, dict):
        raise UnexpectedAnswerError(url, f"its event '{event.event}' is not a JSON object")
    return data


def _checked(adapter: TypeAdapter[T], url: str, payload: object) -> T:
    try:
        return adapter.validate_python(payload)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UnexpectedAnswerError(url, f"{where}: {first['msg']}") from error


_JOB: TypeAdapter[JobView] = TypeAdapter(JobView)
_BATCH: TypeAdapter[BatchView] = TypeAdapter(BatchView)
_BATCH_LINE: TypeAdapter[BatchLineView] = TypeAdapter(BatchLineView)
_USAGE: TypeAdapter[UsageView] = TypeAdapter(UsageView)
