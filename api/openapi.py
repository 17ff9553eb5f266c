"""The OpenAPI 3.1 description of an application, complete: what FastAPI leaves out is added here.

The same rules hold for every route, so no route has to repeat them: which errors come from the
layers around it, which headers an answer carries, how operations are named. Pure, but for `Api`.
"""

import re
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from api.examples import PROBLEMS, SCHEMAS
from api.problems import MEDIA_TYPE
from sdserve import __version__
from sdserve.families import GenerationDefaults

Document = dict[str, Any]

RETRY_AFTER = {
    "description": "whole seconds until the next try, or look, is worth it (RFC 9110)",
    "schema": {"type": "integer", "minimum": 0},
    "example": 9,
}
LOCATION = {
    "description": "where the job is, from the server's root",
    "required": True,
    "schema": {"type": "string", "format": "uri-reference"},
    "example": "/v1/jobs/01a20894-464e-7ebd-800d-5bcb0e3d2168",
}
JOB_ID = {
    "description": "the job behind this answer",
    "required": True,
    "schema": {"type": "string", "format": "uuid"},
    "example": "01a20894-464e-7ebd-800d-5bcb0e3d2168",
}
PREFERENCE_APPLIED = {
    "description": "which preference of `Prefer` was followed (RFC 7240)",
    "schema": {"type": "string"},
    "example": "wait=60",
}
RATE_LIMIT = {
    "RateLimit-Policy": {
        "description": "the quotas of this API key (draft-ietf-httpapi-ratelimit-headers)",
        "schema": {"type": "string"},
        "example": '"requests";q=600;w=60, "jobs";q=1000;qu="concurrent-requests"',
    },
    "RateLimit": {
        "description": "what is left of them, and seconds until there is more",
        "schema": {"type": "string"},
        "example": '"requests";r=599;t=1, "jobs";r=998',
    },
}
ETAG = {
    "description": "a result never changes: its name is its version",
    "required": True,
    "schema": {"type": "string"},
    "example": '"01a20894-464e-7ebd-800d-5bcb0e3d2168-0"',
}
SEED = {
    "description": "that reproduces the picture; only where the body is its bytes",
    "schema": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
    "example": 7,
}
BYTES = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
IMAGES = dict.fromkeys(("image/png", "image/jpeg", "image/webp"), BYTES)


def event(name: str, data: Document, **fields: Document) -> Document:
    """The schema of a server-sent event, field by field; `data` is JSON of this schema.

    OpenAPI 3.1 has no word for the items of a stream: as is usual, the schema is that of each.
    """
    text = {"type": "string", "contentMediaType": "application/json", "contentSchema": data}
    properties = {"event": {"const": name}, "data": text, **fields}
    return {"type": "object", "properties": properties, "required": list(properties)}


TAGS = [
    {"name": "generate", "description": "Draw a picture: at once when warm, else as a job."},
    {"name": "jobs", "description": "Look at, wait for, follow, collect and cancel jobs."},
    {"name": "batches", "description": "Many generations under one id."},
    {"name": "models", "description": "What is deployed, in the OpenAI list shape."},
    {"name": "usage", "description": "What was used, by key, app and day."},
    {"name": "health", "description": "Whether work can be accepted; for probes, without a key."},
]

_CHALLENGE = {
    "description": "how to show a key (RFC 6750)",
    "schema": {"type": "string"},
    "example": 'Bearer realm="sdserve"',
}
_PROBLEM_HEADERS = {
    "401": {"WWW-Authenticate": _CHALLENGE},
    "429": {"Retry-After": RETRY_AFTER, **RATE_LIMIT},
    "503": {"Retry-After": RETRY_AFTER},
}
_METHODS = ("get", "put", "post", "delete", "patch")


class Api(FastAPI):
    """FastAPI whose description says everything that it answers."""

    def __init__(self, *, defaults: GenerationDefaults | None = None, **options: Any) -> None:
        """Prepare it.

        Args:
            defaults: of the one checkpoint that this application serves, if it serves one.
            options: FastAPI's.
        """
        super().__init__(
            version=__version__,
            license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
            openapi_tags=TAGS,
            generate_unique_id_function=_operation_id,
            **options,
        )
        self._defaults = defaults

    def openapi(self) -> Document:
        if self.openapi_schema is None:
            document = super().openapi()
            complete(document)
            if self._defaults:
                narrow(document["components"]["schemas"]["GenerateRequest"], self._defaults)
        return self.openapi_schema or {}


def complete(document: Document) -> None:
    """Add what holds for every operation."""
    schemas = document["components"]["schemas"]
    used = set[str]()
    for path, operation in _operations(document):
        _summarise(operation)
        _declare_layers(path, operation)
        used |= set(operation.get("tags", []))
        for status, answer in operation["responses"].items():
            if int(status) >= 400:
                answer.clear()
                answer["$ref"] = f"#/components/responses/{_name(status)}"
    document["components"]["responses"] = {
        _name(status): _problem(status)
        for status in sorted({s for _, o in _operations(document) for s in o["responses"]})
        if int(status) >= 400
    }
    document["tags"] = [tag for tag in TAGS if tag["name"] in used]
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which we never send
        schemas.pop(name, None)
    for name, examples in SCHEMAS.items():
        if name in schemas:
            schemas[name]["examples"] = examples


def narrow(request: Document, defaults: GenerationDefaults) -> None:
    """Say of a generation what only its checkpoint decides: sizes, samplers, defaults."""
    fields = request["properties"]
    size = {
        "minimum": defaults.min_size,
        "maximum": defaults.max_size,
        "multipleOf": defaults.size_multiple,
    }
    fields["width"] |= {"default": defaults.width, "anyOf": [{"type": "integer", **size}, _NULL]}
    fields["height"] |= {"default": defaults.height, "anyOf": [{"type": "integer", **size}, _NULL]}
    names = list(defaults.schedulers)
    sampler = {"type": "string", "enum": names}
    fields["scheduler"] |= {"default": defaults.scheduler, "anyOf": [sampler, _NULL]}
    fields["num_inference_steps"]["default"] = defaults.steps
    fields["step_cache"]["maximum"] = defaults.max_step_cache
    fields["guidance_scale"]["default"] = defaults.guidance_scale


_NULL = {"type": "null"}


def _operations(document: Document) -> Iterator[tuple[str, Document]]:
    for path, methods in document["paths"].items():
        for method in _METHODS:
            if method in methods:
                yield path, methods[method]


def _summarise(operation: Document) -> None:
    """The first sentence of the docstring is the summary, the rest the description."""
    text = " ".join(operation.get("description", "").split())
    first, _, rest = text.partition(". ")
    operation["summary"] = first.rstrip(".")
    operation.pop("description", None)
    if rest:
        operation["description"] = rest


def _declare_layers(path: str, operation: Document) -> None:
    """The errors of what stands around a route: host and key check, body limit, ..., store."""
    statuses = {"403", "421"} | ({"500", "503"} if not path.endswith("/health/live") else set())
    if operation.get("security"):
        statuses |= {"401", "429"}
    if operation.get("parameters"):
        statuses |= {"422"}
    if "requestBody" in operation:
        statuses |= {"408", "413", "422"}
    for status in sorted(statuses):
        operation["responses"].setdefault(status, {})
    operation["responses"] = dict(sorted(operation["responses"].items()))


def _problem(status: str) -> Document:
    title, examples = PROBLEMS[status]
    answer: Document = {
        "description": title,
        "content": {
            MEDIA_TYPE: {
                "schema": {"$ref": "#/components/schemas/Problem"},
                "examples": {
                    example["type"].rpartition(":")[2]: {"value": example} for example in examples
                },
            }
        },
    }
    if headers := _PROBLEM_HEADERS.get(status):
        answer["headers"] = headers
    return answer


def _name(status: str) -> str:
    """Of the shared answer, e.g. "TooManyRequests"."""
    return re.sub(r"\W", "", PROBLEMS[status][0].title())


def _operation_id(route: APIRoute) -> str:
    """E.g. "jobs_cancel": unique, and a method's name in a generated client."""
    tag = str(route.tags[0]) if route.tags else route.name  # without: a route that is not shown
    return route.name if route.name == tag else f"{tag}_{route.name}"
