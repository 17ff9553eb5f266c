"""A page of jobs, newest first: the operation, and the cursor that names where the next begins."""

import base64
from dataclasses import dataclass
from typing import Any, ClassVar, Self
from uuid import UUID

from sdserve import keys
from sdserve.jobs import Job, JobStatus
from sdserve.operations import Argument, Operation, job_of
from sdserve.operations.wire import fields_of

# Index entries that one page looks at: the work of a page is bounded, however few jobs of a status
# there are. A page with few jobs or none may have a next one.
SCAN = 500

CURSOR = r"^[A-Za-z0-9_-]{32}$"  # 24 bytes: 8 of the time, 16 of the id


@dataclass(frozen=True, kw_only=True)
class ListPlace:
    """A job's place in an index."""

    created: int  # server milliseconds
    job_id: str

    @property
    def cursor(self) -> str:
        """As clients get it: a text that says nothing to them, of the form CURSOR."""
        place = self.created.to_bytes(8) + UUID(self.job_id).bytes
        return base64.urlsafe_b64encode(place).decode()

    @classmethod
    def read(cls, cursor: str) -> Self:
        """The place behind a text of the form CURSOR, each of which has one."""
        place = base64.urlsafe_b64decode(cursor)
        return cls(created=int.from_bytes(place[:8]), job_id=str(UUID(bytes=place[8:])))


@dataclass(frozen=True, kw_only=True)
class JobPage:
    """Some jobs, newest first, and where to go on; None: these are the last."""

    jobs: tuple[Job, ...]
    last: ListPlace | None


@dataclass(frozen=True, kw_only=True)
class ListJobs(Operation[JobPage]):
    """Jobs that the store still knows: of a client, or of all."""

    script: ClassVar[str] = "list_jobs"
    client: str | None  # None: of every client
    app: str | None = None
    status: JobStatus | None = None
    limit: int = 20
    after: ListPlace | None = None
    scan: int = SCAN

    @property
    def keys(self) -> list[str]:
        return [keys.INDEX if self.client is None else keys.MINE + self.client]

    @property
    def arguments(self) -> list[Argument]:
        after = self.after
        return [
            keys.JOB, keys.QUEUE, self.limit, self.scan, after.job_id if after else "",
            after.created if after else 0, self.app or "", self.status or "",
        ]  # fmt: skip

    def read(self, reply: Any) -> JobPage:
        found, last = reply
        return JobPage(
            jobs=tuple(job_of(fields_of(flat), position=place) for flat, place in found),
            last=ListPlace(job_id=last[0].decode(), created=int(last[1])) if last else None,
        )
