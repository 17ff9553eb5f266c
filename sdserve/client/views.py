"""What the server tells, as frozen values. Fields of a newer server are ignored. Pure."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Self

from sdserve.batches import BatchState, LineStatus
from sdserve.jobs import JobFailure, JobStatus


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image as bytes of its format."""

    data: bytes = field(repr=False)
    media_type: str  # e.g. "image/png"

    @classmethod
    def of_data_uri(cls, uri: str) -> Self:
        """A `data:image/png;base64,...` URI (RFC 2397).

        Raises:
            ValueError: it is not base64.
        """
        head, _, data = uri.partition(",")
        media_type = head.removeprefix("data:").partition(";")[0]
        return cls(data=base64.b64decode(data, validate=True), media_type=media_type)

    @property
    def suffix(self) -> str:
        """Of a file with this picture, e.g. ".png"."""
        return _SUFFIXES.get(self.media_type, ".bin")


_SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp"}


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Denoising steps of all images of a job."""

    step: int = 0
    steps: int = 0


@dataclass(frozen=True, kw_only=True)
class JobView:
    """A job as the server tells it."""

    id: str
    app: str
    status: JobStatus
    model: str | None = None
    phase: str | None = None  # in words: "reading file 43%", "step 12 of 30"
    progress: Progress | None = None
    position: int | None = None  # 0 = next; None when not queued
    eta_seconds: float | None = None
    attempt: int = 0
    created_at: datetime | None = None  # the three times are the server's
    started_at: datetime | None = None
    finished_at: datetime | None = None
    result: dict[str, Any] | None = field(default=None, repr=False)  # the 200 body
    error: JobFailure | None = None
    compute_metrics: dict[str, Any] | None = field(default=None, repr=False)

    @classmethod
    def of_result(cls, app: str, body: Mapping[str, Any]) -> Self:
        """A 200 answer of `generate`: a job that the server waited for."""
        return cls(
            id=str(body["job_id"]),
            app=app,
            status=JobStatus.SUCCEEDED,
            model=body.get("model"),
            result=dict(body),
            compute_metrics=body.get("compute_metrics"),
        )

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything that reproduces the pictures; empty before the job has succeeded."""
        found = (self.result or {}).get("parameters")
        return found if isinstance(found, dict) else {}

    @property
    def seconds(self) -> float | None:
        """From acceptance to the end, by the server's clock."""
        if self.created_at and self.finished_at:
            return (self.finished_at - self.created_at).total_seconds()
        return (self.compute_metrics or {}).get("query_duration_seconds")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What ended jobs used together."""

    jobs_succeeded: int = 0
    jobs_failed: int = 0
    jobs_cancelled: int = 0
    images: int = 0  # of succeeded jobs
    steps: int = 0  # denoising steps taken, also by jobs that failed
    gpu_seconds: float = 0.0
    cpu_seconds: float = 0.0
    energy_joules: float = 0.0  # of GPU boards; 0 where none tells
    result_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class UsageRow(Usage):
    """The sum of one group: the field that it is grouped by is set."""

    key: str | None = None  # id of an API key; "" = without one
    app: str | None = None
    day: date | None = None  # UTC


@dataclass(frozen=True, kw_only=True)
class UsageView:
    """Usage by key, app or day: of the groups that have any, and its total."""

    data: list[UsageRow]
    total: Usage


@dataclass(frozen=True, kw_only=True)
class BatchCounts:
    """Lines of a batch by where they stand; their sum is the number of lines."""

    waiting: int = 0  # not in their app's queue yet
    active: int = 0  # queued or running
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0


@dataclass(frozen=True, kw_only=True)
class BatchView:
    """A batch as the server tells it."""

    id: str
    status: BatchState
    lines: int
    counts: BatchCounts
    apps: dict[str, int] = field(default_factory=dict[str, int])  # lines of each app
    created_at: datetime | None = None  # both times are the server's
    ended_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class BatchLineView:
    """Where one line of a batch stands."""

    line: int  # number in the upload, from 1
    app: str
    status: LineStatus
    custom_id: str | None = None  # your own name for it
    job_id: str | None = None  # None while it is no job, and if it never became one
    seed: int | None = None  # of the first image
    error: JobFailure | None = None
    compute_metrics: dict[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What the picture looks like at a step: small, and gone with the next one."""

    step: int  # denoising steps done, over all images of the job, of `steps`
    steps: int
    number: int  # of the image, from 0
    picture: Picture


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """A change of a job: its whole new state; or, with the state as it was, a preview."""

    job: JobView
    preview: Preview | None = None
