"""What a webhook tells, and how. Pure."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from pydantic_core import to_jsonable_python

from sdserve.batch_operations import batch_of
from sdserve.jobs import Job
from sdserve.operations import job_of
from sdserve.outbox import HookTry
from sdserve.webhook_signature import secrets_of, signature


def job_data(fields: Mapping[str, str]) -> dict[str, Any]:
    """An ended job, as `GET /v1/jobs/{id}` tells it, without the bytes of its images."""
    job = job_of(fields)
    links = {"self": f"/v1/jobs/{job.id}", "events": f"/v1/jobs/{job.id}/events"}
    if job.metrics:
        links["image"] = f"/v1/jobs/{job.id}/image"
    return {
        "id": job.id,
        "app": job.app,
        "model": job.model,
        "status": job.status,
        "phase": None,
        "progress": {"step": job.step, "steps": job.params.total_steps},
        "position": None,
        "eta_seconds": None,
        "attempt": job.attempt,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "result": _result(job),
        "error": job.error,
        "compute_metrics": job.metrics,
        "usage": job.usage.told() if job.usage else None,
        "links": links,
    }


def _result(job: Job) -> dict[str, Any] | None:
    if job.metrics is None:
        return None
    return {
        "status": "success",
        "model": job.model,
        "image": None,
        "prompt": job.params.prompt,
        "parameters": job.params.to_dict(),
        "job_id": job.id,
        "compute_metrics": job.metrics,
    }


def batch_data(fields: Mapping[str, str]) -> dict[str, Any]:
    """An ended batch, as `GET /v1/batches/{id}` tells it."""
    batch = batch_of(fields, live={})
    here = f"/v1/batches/{batch.id}"
    return {
        "id": batch.id,
        "status": batch.state,
        "lines": batch.lines,
        "counts": {
            "waiting": 0,
            "active": 0,
            "succeeded": batch.succeeded,
            "failed": batch.failed,
            "cancelled": batch.cancelled,
        },
        "apps": {lines.app: lines.lines for lines in batch.apps},
        "created_at": batch.created_at,
        "ended_at": batch.ended_at,
        "links": {"self": here, "results": f"{here}/results", "images": f"{here}/images.zip"},
    }


# What is told of the hash of a subject, by the kind of event.
DATA: Mapping[str, Callable[[Mapping[str, str]], dict[str, Any]]] = {
    "job": job_data,
    "batch": batch_data,
}


@dataclass(frozen=True, kw_only=True)
class WebhookEvent:
    """A message to a receiver, the same in each try."""

    id: str
    type: str  # e.g. job.succeeded, batch.completed
    client: str  # whose job or batch it is
    body: bytes

    @classmethod
    def of(cls, attempt: HookTry) -> Self:
        kind, _, status = attempt.event.split("_")
        body = {
            "type": f"{kind}.{status}",
            "timestamp": attempt.created_at,
            "data": DATA[kind](attempt.subject),
        }
        text = json.dumps(to_jsonable_python(body), separators=(",", ":"), ensure_ascii=False)
        return cls(
            id=attempt.event,
            type=f"{kind}.{status}",
            client=attempt.subject["client"],
            body=text.encode(),
        )

    def headers(self, configured: Sequence[bytes], now: datetime) -> dict[str, str]:
        """The headers of a try at this moment (Standard Webhooks), signed for its client."""
        timestamp = int(now.timestamp())
        secrets = secrets_of(self.client, configured)
        return {
            "Content-Type": "application/json",
            "User-Agent": "sdserve-webhooks",
            "webhook-id": self.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(secrets, self.id, timestamp, self.body),
        }
