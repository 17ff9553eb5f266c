"""A page of jobs of the store in memory: what list_jobs.lua does, said once more in Python."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sdserve.job_list import JobPage, ListJobs, ListPlace
from sdserve.jobs import Job


@dataclass(frozen=True, kw_only=True)
class IndexEntry:
    """What is remembered of a job, for longer than its record."""

    created: float  # seconds
    client: str
    app: str

    @property
    def milliseconds(self) -> int:
        return int(self.created * 1000)


def list_jobs(
    op: ListJobs, index: Mapping[str, IndexEntry], view: Callable[[str], Job | None]
) -> JobPage:
    """The page; `view` is None for a job whose record is gone."""
    order = sorted(
        (
            (entry.milliseconds, job_id)
            for job_id, entry in index.items()
            if (op.client is None or entry.client == op.client)
            and (op.client is not None or op.app is None or entry.app == op.app)
        ),
        reverse=True,
    )
    first = 0
    if op.after is not None:
        place = (op.after.created, op.after.job_id)
        newer = [entry for entry in order if entry[0] >= op.after.created]
        first = order.index(place) + 1 if place in order else len(newer)
    jobs, looked = list[Job](), 0
    for _, job_id in order[first : first + op.scan]:
        if len(jobs) == op.limit:
            break
        looked += 1
        job = view(job_id)
        if job and op.app in (None, job.app) and op.status in (None, job.status):
            jobs.append(job)
    last = None
    if first + looked < len(order):
        created, job_id = order[first + looked - 1]
        last = ListPlace(created=created, job_id=job_id)
    return JobPage(jobs=tuple(jobs), last=last)
