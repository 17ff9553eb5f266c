"""A job as its client has it: a look at it, its place, its cancel."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

from sdserve import keys
from sdserve.apps import AppStatus
from sdserve.errors import JobExpiredError, JobNotFoundError
from sdserve.generation import ComputeMetrics, GenerationParams
from sdserve.jobs import Job, JobFailure, JobStatus
from sdserve.operations.apps import TOLD, app_of
from sdserve.operations.operation import Argument, Operation
from sdserve.operations.wire import fields_of, time_of
from sdserve.usage import Usage


@dataclass(frozen=True, kw_only=True)
class Cancel(Operation[JobStatus | None]):
    """Cancel a job. Answers the status it had; None: no such job."""

    script: ClassVar[str] = "cancel"
    app: str
    job_id: str
    job_ttl: timedelta

    @property
    def keys(self) -> list[str]:
        app = self.app
        return [
            keys.JOB + self.job_id, keys.QUEUE + app, keys.APP + app, keys.LOAD, keys.SHARES + app,
        ]  # fmt: skip

    @property
    def arguments(self) -> list[Argument]:
        return [self.job_id, int(self.job_ttl.total_seconds()), keys.CHANNEL + self.app]

    def read(self, reply: Any) -> JobStatus | None:
        word = reply.decode()
        return None if word == "missing" else JobStatus(word)


@dataclass(frozen=True, kw_only=True)
class ViewJob(Operation[Job]):
    """A job at one moment.

    Raises (in `read`):
        JobNotFoundError, JobExpiredError.
    """

    script: ClassVar[str] = "view_job"
    job_id: str

    @property
    def keys(self) -> list[str]:
        return [keys.JOB + self.job_id]

    @property
    def arguments(self) -> list[Argument]:
        return [self.job_id]

    def read(self, reply: Any) -> Job:
        return _found(self.job_id, reply)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A job at one moment, with its app while that matters to it."""

    job: Job
    app: AppStatus | None  # with what is before the job; None once it is final
    results: tuple[bytes | None, ...] | None = None  # its images' bytes, where they came along


@dataclass(frozen=True, kw_only=True)
class Look(Operation[Seen]):
    """All that is told to who asks for a job, in one step.

    Raises (in `read`):
        JobNotFoundError, JobExpiredError.
    """

    script: ClassVar[str] = "look"
    job_id: str
    limit: int = TOLD

    @property
    def keys(self) -> list[str]:
        return [keys.JOB + self.job_id]

    @property
    def arguments(self) -> list[Argument]:
        return [self.job_id, self.limit]

    def read(self, reply: Any) -> Seen:
        job, *app = reply
        return Seen(
            job=_found(self.job_id, job),
            app=app_of(app[0], before=self.job_id) if app else None,
        )


def _found(job_id: str, reply: Any) -> Job:
    """The job as `job_now` of common.lua tells it.

    Raises:
        JobNotFoundError, JobExpiredError.
    """
    if reply[0] == b"missing":
        raise JobNotFoundError(job_id)
    if reply[0] == b"expired":
        raise JobExpiredError(job_id)
    return job_of(fields_of(reply[1]), position=reply[2])


def job_of(fields: Mapping[str, str], *, position: int | None = None) -> Job:
    """The job that a hash holds."""
    meta: dict[str, Any] = json.loads(fields.get("meta", "{}"))
    error, metrics = meta.get("error"), meta.get("metrics")
    status = JobStatus(fields["status"])
    used: dict[str, int] = json.loads(fields.get("usage", "{}"))
    params = GenerationParams.from_json(fields["request"])
    # The last step ends with the job: no heartbeat tells it any more.
    is_drawn = status is JobStatus.SUCCEEDED
    return Job(
        id=fields["id"],
        app=fields["app"],
        model=fields["model"],
        status=status,
        params=params,
        created_at=time_of(fields["created"]),
        started_at=time_of(fields["started"]) if "started" in fields else None,
        finished_at=time_of(fields["ended"]) if "ended" in fields else None,
        phase=fields.get("phase"),
        step=params.total_steps if is_drawn else int(fields.get("step", 0)),
        position=position,
        attempt=int(fields["attempt"]),
        cancel_requested="cancel" in fields,
        version=int(fields.get("version", 0)),
        client=fields.get("client", ""),
        owner=fields.get("owner"),
        result_keys=tuple(meta.get("results") or ()),
        image_seeds=tuple(meta.get("seeds") or ()),
        metrics=ComputeMetrics(**metrics) if metrics else None,
        error=JobFailure(**error) if error else None,
        usage=Usage(**used, **{f"jobs_{status}": 1}) if status.is_final else None,
        batch=fields.get("batch"),
        line=int(fields["line"]) if "line" in fields else None,
    )


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a job stands in its app's queue."""

    version: int | None  # of the job; None: there is no such job
    position: int | None  # 0 = next; None: it is not in the queue


@dataclass(frozen=True, kw_only=True)
class ViewPlaces(Operation[list[Place]]):
    """Where several jobs of an app stand, in their order."""

    script: ClassVar[str] = "view_places"
    app: str
    job_ids: Sequence[str]

    @property
    def keys(self) -> list[str]:
        return [keys.QUEUE + self.app, *(keys.JOB + job_id for job_id in self.job_ids)]

    @property
    def arguments(self) -> list[Argument]:
        return list(self.job_ids)

    def read(self, reply: Any) -> list[Place]:
        return [Place(version=version, position=position) for version, position in reply]
