"""What travels over HTTP about batches."""

from datetime import datetime
from typing import Self

from pydantic import BaseModel, Field

from sdserve.batches import Batch, BatchLine, BatchState, LineState, LineStatus, line_job_id
from sdserve.generation import ComputeMetrics
from sdserve.jobs import JobFailure


class BatchCounts(BaseModel):
    """Lines by where they stand. Their sum is the number of lines."""

    waiting: int = Field(description="not in their app's queue yet")
    active: int = Field(description="queued or running")
    succeeded: int
    failed: int
    cancelled: int


class BatchResponse(BaseModel):
    """A batch as it stands."""

    id: str
    status: BatchState
    lines: int
    counts: BatchCounts
    apps: dict[str, int] = Field(description="lines of each app")
    created_at: datetime
    ended_at: datetime | None
    links: dict[str, str]

    @classmethod
    def of(cls, batch: Batch) -> Self:
        here = f"/v1/batches/{batch.id}"
        active = len(batch.live)
        return cls(
            id=batch.id,
            status=batch.state,
            lines=batch.lines,
            counts=BatchCounts(
                waiting=batch.lines - batch.ended - active,
                active=active,
                succeeded=batch.succeeded,
                failed=batch.failed,
                cancelled=batch.cancelled,
            ),
            apps={lines.app: lines.lines for lines in batch.apps},
            created_at=batch.created_at,
            ended_at=batch.ended_at,
            links={"self": here, "results": f"{here}/results", "images": f"{here}/images.zip"},
        )


class BatchList(BaseModel):
    """Batches, the newest first."""

    data: list[BatchResponse]
    next_cursor: str | None = Field(description="for the next page; null on the last")


class LineResult(BaseModel):
    """One line of the results."""

    line: int = Field(description="number in the upload, from 1")
    custom_id: str | None
    app: str
    status: LineStatus
    job_id: str | None = Field(description="null while it is no job, and if it never became one")
    seed: int = Field(description="of the first image")
    error: JobFailure | None
    compute_metrics: ComputeMetrics | None
    links: dict[str, str]

    @classmethod
    def of(cls, batch: Batch, line: BatchLine, state: LineState) -> Self:
        # A line whose job was handed over after we looked at the batch has a job all the same.
        is_job = batch.has_job(line) or state.status in (LineStatus.QUEUED, LineStatus.RUNNING)
        job_id = line_job_id(batch.id, line.number) if is_job or state.result_keys else None
        links = dict[str, str]()
        if job_id:
            links["job"] = f"/v1/jobs/{job_id}"
        if state.result_keys:
            links["image"] = f"/v1/jobs/{job_id}/image"
        return cls(
            line=line.number,
            custom_id=line.custom_id,
            app=line.app,
            status=state.status,
            job_id=job_id,
            seed=line.params.seed,
            error=state.error,
            compute_metrics=state.metrics,
            links=links,
        )
