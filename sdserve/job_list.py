"""A page of jobs, newest first: the operation, and the cursor that names where the next begins."""

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from sdserve import keys
from sdserve.jobs import Job, JobStatus, is_job_id
from sdserve.operations import Argument, Operation, fields_of, job_of

# Index entries that one page looks at: the work of a page is bounded, however few jobs of a status
# there are. A page with few jobs or none may have a next one.
SCAN = 500

_PLACE = re.compile(r"(\d{1,15})\.(.{36})")


@dataclass(frozen=True, kw_only=True)
class ListPlace:
    """A job's place in an index."""

    created: int  # server milliseconds
    job_id: str

    @property
    def cursor(self) -> str:
        """As clients get it: a text that says nothing to them."""
        text = f"{self.created}.{self.job_id}"
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def read(cls, cursor: str) -> Self | None:
        """The place behind a cursor; None for a text that is none."""
        try:
            text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
        except (binascii.Error, ValueError):
            return None
        match = _PLACE.fullmatch(text)
        if match is None or not is_job_id(match[2]):
            return None
        return cls(created=int(match[1]), job_id=match[2])


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
        if self.client is not None:
            return [keys.MINE + self.client]
        return [f"{keys.INDEX}:{self.app}" if self.app else keys.INDEX]

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
