"""The picture of a running job so far, for those who watch it."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

from sdserve import keys
from sdserve.jobs import JobStatus, Preview
from sdserve.operations.operation import Argument, Operation
from sdserve.operations.wire import milliseconds


@dataclass(frozen=True, kw_only=True)
class Watch(Operation[JobStatus | None]):
    """Wish for previews of an unfinished job. Answers its status; None: no such job."""

    script: ClassVar[str] = "watch"
    job_id: str
    span: timedelta  # until the wish runs out

    @property
    def keys(self) -> list[str]:
        return [keys.JOB + self.job_id]

    @property
    def arguments(self) -> list[Argument]:
        return [milliseconds(self.span)]

    def read(self, reply: Any) -> JobStatus | None:
        return None if reply is None else JobStatus(reply.decode())


@dataclass(frozen=True, kw_only=True)
class ShowPreview(Operation[bool]):
    """Show how far the picture of a running job is. False: the claim is no longer ours."""

    script: ClassVar[str] = "preview"
    app: str
    job_id: str
    fence: int
    preview: Preview
    ttl: timedelta

    @property
    def keys(self) -> list[str]:
        return [keys.JOB + self.job_id, keys.PREVIEW + self.job_id]

    @property
    def arguments(self) -> list[Argument]:
        shown = self.preview
        return [
            self.job_id, self.fence, shown.step, shown.number, shown.image,
            milliseconds(self.ttl), keys.CHANNEL + self.app,
        ]  # fmt: skip

    def read(self, reply: Any) -> bool:
        return reply == 1


@dataclass(frozen=True, kw_only=True)
class ViewPreview(Operation[Preview | None]):
    """The preview of a running job; None: there is none of this attempt (yet)."""

    script: ClassVar[str] = "view_preview"
    job_id: str

    @property
    def keys(self) -> list[str]:
        return [keys.PREVIEW + self.job_id]

    @property
    def arguments(self) -> list[Argument]:
        return []

    def read(self, reply: Any) -> Preview | None:
        if not reply:
            return None
        step, number, image = reply
        return Preview(step=int(step), number=int(number), image=image)
