"""Examples for the OpenAPI description: of every schema that travels, and of every error."""

from typing import Any

_JOB_ID = "01a20894-464e-7ebd-800d-5bcb0e3d2168"
_PROMPT = "a red circle on a blue background"
_PARAMETERS = {
    "prompt": _PROMPT,
    "negative_prompt": "",
    "num_inference_steps": 30,
    "guidance_scale": 5.0,
    "width": 1024,
    "height": 1024,
    "seed": 7,
    "scheduler": "euler",
    "num_images": 1,
    "format": "base64",
    "step_cache": 1,
}
_METRICS = {
    "query_duration_seconds": 4.1,
    "replica_cpu_percent": 98.0,
    "replica_memory_mb": 3120.5,
    "replica_num_cpus": 1.0,
    "queue_seconds": 0.1,
    "denoise_seconds": 3.6,
}
_RESULT = {
    "status": "success",
    "model": "sd_xl_base_1.0",
    "image": "data:image/png;base64,iVBORw0KGgo=",
    "prompt": _PROMPT,
    "parameters": _PARAMETERS,
    "job_id": _JOB_ID,
    "compute_metrics": _METRICS,
}
_QUEUED: dict[str, Any] = {
    "id": _JOB_ID,
    "app": "sd-sd-xl-base-1-0",
    "model": "sd_xl_base_1.0",
    "status": "queued",
    "phase": "reading file 43%",
    "progress": {"step": 0, "steps": 30},
    "position": 0,
    "eta_seconds": 8.5,
    "attempt": 0,
    "created_at": "2026-11-23T13:24:24.783000Z",
    "started_at": None,
    "finished_at": None,
    "result": None,
    "error": None,
    "compute_metrics": None,
    "usage": None,
    "links": {"self": f"/v1/jobs/{_JOB_ID}"},
}
_ONE: dict[str, Any] = {
    "jobs_succeeded": 1,
    "jobs_failed": 0,
    "jobs_cancelled": 0,
    "images": 1,
    "steps": 30,
    "gpu_seconds": 0.911,
    "cpu_seconds": 0.304,
    "energy_joules": 380.2,
    "result_bytes": 1611204,
}
_SUCCEEDED: dict[str, Any] = _QUEUED | {
    "status": "succeeded",
    "phase": None,
    "progress": {"step": 30, "steps": 30},
    "position": None,
    "eta_seconds": None,
    "attempt": 1,
    "started_at": "2026-11-23T13:24:25.101000Z",
    "finished_at": "2026-11-23T13:24:28.914000Z",
    "result": _RESULT,
    "compute_metrics": _METRICS,
    "usage": _ONE,
    "links": {"self": f"/v1/jobs/{_JOB_ID}", "image": f"/v1/jobs/{_JOB_ID}/image"},
}
_MODEL: dict[str, Any] = {
    "id": "sd-sd-xl-base-1-0",
    "object": "model",
    "created": 1763902000,
    "owned_by": "local",
    "checkpoint": "sd_xl_base_1.0.safetensors",
    "family": "sdxl",
    "route": "/sd-sd-xl-base-1-0",
    "state": "cold",
    "phase": None,
    "reason": None,
    "width": 1024,
    "height": 1024,
    "file_bytes": 6938078334,
    "sha256": None,
    "defaults": {"num_inference_steps": 30, "guidance_scale": 5.0, "scheduler": "euler"},
    "schedulers": ["ddim", "euler"],
    "limits": {
        "min_size": 256,
        "max_size": 2048,
        "size_multiple": 8,
        "step_cache": 5,
        "queue": 100,
    },
    "engine": {"precision": "auto", "exact": False, "compile": False, "slots": 8},
}

_BATCH_ID = "01a20899-12ab-7ebd-800d-5bcb0e3d2168"
_BATCH: dict[str, Any] = {
    "id": _BATCH_ID,
    "status": "running",
    "lines": 3,
    "counts": {"waiting": 1, "active": 1, "succeeded": 1, "failed": 0, "cancelled": 0},
    "apps": {"sd-sd-xl-base-1-0": 3},
    "created_at": "2026-11-23T13:24:24.783000Z",
    "ended_at": None,
    "links": {
        "self": f"/v1/batches/{_BATCH_ID}",
        "results": f"/v1/batches/{_BATCH_ID}/results",
        "images": f"/v1/batches/{_BATCH_ID}/images.zip",
    },
}

SCHEMAS: dict[str, list[dict[str, Any]]] = {
    "GenerateResponse": [_RESULT],
    "JobResponse": [_QUEUED, _SUCCEEDED],
    "BatchResponse": [_BATCH],
    "BatchList": [{"data": [_BATCH], "next_cursor": None}],
    "UsageList": [
        {
            "object": "list",
            "by": "app",
            "from": "2026-11-01",
            "to": "2026-11-30",
            "data": [{"key": None, "app": "sd-sd-xl-base-1-0", "day": None, **_ONE}],
            "total": _ONE,
        }
    ],
    "ModelList": [{"object": "list", "data": [_MODEL]}],
    "HealthResponse": [
        {
            "app": "sd-sd-xl-base-1-0",
            "state": "cold",
            "phase": None,
            "queued": 0,
            "running": 0,
            "replicas": [],
            "reason": None,
        }
    ],
}
"""By the schema's name in the description."""


def _problem(title: str, status: int, code: str, detail: str, **more: Any) -> dict[str, Any]:
    place = {"type": f"urn:sdserve:problem:{code}", "title": title, "status": status}
    return {**place, "detail": detail, **more}


def _problems(status: int, title: str, *cases: tuple[str, str]) -> tuple[str, list[dict[str, Any]]]:
    return title, [_problem(title, status, code, detail) for code, detail in cases]


PROBLEMS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "400": _problems(
        400,
        "Bad Request",
        ("bad_idempotency_key", "Idempotency-Key must have 1 to 200 characters."),
    ),
    "401": _problems(
        401, "Unauthorized", ("unauthorized", "This server asks for an API key: send one.")
    ),
    "403": _problems(
        403,
        "Forbidden",
        ("cross_site", "This server asks for no API key and refuses the pages of other sites."),
    ),
    "404": _problems(
        404,
        "Not Found",
        ("job_not_found", f"No job has the id '{_JOB_ID}': check the id in the 202 answer."),
    ),
    "406": _problems(
        406,
        "Not Acceptable",
        ("not_acceptable", "Accept asks for image/png, format for webp: use one."),
    ),
    "408": _problems(
        408,
        "Request Timeout",
        ("body_timeout", "The body did not arrive within 10 s: send it at once."),
    ),
    "409": _problems(
        409,
        "Conflict",
        ("job_cancelled", f"Job {_JOB_ID} was cancelled."),
        ("job_is_final", f"Job {_JOB_ID} is succeeded already: there is nothing to cancel."),
    ),
    "410": _problems(
        410,
        "Gone",
        ("job_expired", f"Job {_JOB_ID} has expired: its result is gone, submit it again."),
    ),
    "413": _problems(
        413,
        "Request Entity Too Large",
        ("body_too_large", "The body is larger than 1048576 bytes: send less."),
    ),
    "415": _problems(
        415,
        "Unsupported Media Type",
        ("unsupported_media_type", "Send the batch as application/jsonl or application/json."),
    ),
    "421": _problems(
        421,
        "Misdirected Request",
        ("unknown_host", "This server does not go by the name 'sd.example.com': use its address."),
    ),
    "422": (
        "Unprocessable Entity",
        [
            _problem(
                "Unprocessable Entity",
                422,
                "invalid_parameter",
                "width: 100 is not a multiple of 8",
                errors=[{"field": "width", "message": "100 is not a multiple of 8"}],
            )
        ],
    ),
    "429": _problems(
        429,
        "Too Many Requests",
        ("too_many_jobs", "You have 1000 unfinished jobs, the limit: retry in 30 s."),
        ("too_many_queued_jobs", "You have 50 queued jobs, the limit: retry in 30 s."),
        (
            "images_spent",
            "You have 500 of 500 images of this day (UTC) and ask for 1 more: retry in 30210 s.",
        ),
        (
            "gpu_seconds_spent",
            "You have used 3600 of 3600 GPU seconds of this day (UTC): retry in 30210 s.",
        ),
        ("too_many_held", "You have 500 requests that are held open, the limit: retry in 5 s."),
        (
            "too_many_webhooks",
            "10000 of your webhook events are not delivered yet, the limit; leave `webhook` out "
            "and poll, or have the operator look why they are not taken: retry in 60 s.",
        ),
        ("rate_limited", "You have asked 600/minute, the limit: retry in 7 s."),
    ),
    "500": _problems(
        500,
        "Internal Server Error",
        ("internal_error", "The server failed on this request; its log has the traceback."),
    ),
    "503": _problems(
        503,
        "Service Unavailable",
        ("queue_full", "The queue of 'sd-sd-xl-base-1-0' is full (100 jobs wait): retry in 30 s."),
        ("store_unavailable", "Redis cannot be reached: retry in 5 s."),
    ),
}
"""By status: its title, and an example of each usual type."""
