"""A submission: one job, accepted once or refused."""

from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any, ClassVar

from sdserve import keys
from sdserve.batches import BatchPlace
from sdserve.generation import GenerationParams
from sdserve.limits import Limits
from sdserve.operations.operation import Argument, Operation
from sdserve.operations.wire import bound, budget_of
from sdserve.pace import Work


class Admission(StrEnum):
    """What happened to a submission."""

    RUN_NOW = "run_now"  # a warm replica has a free slot for it
    QUEUED = "queued"
    DUPLICATE = "duplicate"  # this key or id was accepted before: the same job
    CONFLICT = "conflict"  # this key was used with another body
    FULL = "full"  # refused: the app's queue is at its bound
    SERVER_FULL = "server_full"  # refused: all queues together are
    CLIENT_FULL = "client_full"  # refused: this client has too many unfinished jobs
    CLIENT_QUEUE_FULL = "client_queue_full"  # refused: too many of them are queued
    IMAGES_SPENT = "images_spent"  # refused: this client's images of the day are
    GPU_SPENT = "gpu_spent"  # refused: its GPU seconds of the day are
    WEBHOOKS_FULL = "webhooks_full"  # refused: it has one, and this client's wait for delivery
    STORAGE_FULL = "storage_full"  # refused: no room for results
    BROKEN = "broken"  # refused: the app cannot load its checkpoint
    CLOSED = "closed"  # refused: its batch hands over no more lines of this app


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a client with a name has of its quotas at one moment, this submission included."""

    jobs: int  # unfinished
    queued: int
    images: int  # drawn today and asked for by unfinished jobs
    gpu_ms: int  # today
    day_left: timedelta  # until the day ends (UTC, by the store's clock)


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """The answer to Submit."""

    admission: Admission
    job_id: str
    ahead: int = 0  # jobs before this one; of a refusal: how many there are
    reason: str | None = None  # of BROKEN
    room_after: timedelta | None = None  # of STORAGE_FULL
    standing: Standing | None = None  # of a client with a name, unless it is known from before


@dataclass(frozen=True, kw_only=True)
class Submit(Operation[Submitted]):
    """Accept a job once."""

    script: ClassVar[str] = "submit"
    job_id: str
    app: str
    model: str
    params: GenerationParams
    queue_limit: int
    digest: str  # of the body as the client sent it, before drawn values such as the seed
    client: str = ""  # who asks; "" has no name
    limits: Limits = field(default_factory=Limits)
    idempotency_key: str | None = None
    idempotency_ttl: timedelta = timedelta(hours=24)
    priority: int = 0
    max_attempts: int = 3
    place: BatchPlace | None = None  # of the line of a batch
    # How long such a job is kept when it has ended: its batch keeps the outcome for longer.
    line_ttl: timedelta = timedelta(hours=1)
    webhook: str | None = None  # URL that is told of its end

    @property
    def keys(self) -> list[str]:
        app, idempotency = self.app, ""
        if self.idempotency_key is not None:
            name = keys.hashed(app, self.client, self.idempotency_key)
            idempotency = keys.IDEMPOTENCY + name
        return [
            keys.JOB + self.job_id, keys.QUEUE + app, keys.LEASE + app, keys.REPLICAS + app,
            idempotency, keys.INDEX, keys.WAKE + app, keys.APP + app,
            keys.LOAD, keys.RESULTS, keys.CLOCK + app, keys.SHARES + app, keys.MINE + self.client,
        ]  # fmt: skip

    @property
    def arguments(self) -> list[Argument]:
        quotas = self.limits.client
        place = self.place or BatchPlace(batch="", line=0, previous=0)
        return [
            self.job_id, self.app, self.model, self.params.to_json(), self.digest,
            int(self.idempotency_ttl.total_seconds()), self.priority, self.max_attempts,
            self.client, self.params.total_steps, self.queue_limit, self.limits.jobs,
            bound(quotas.jobs), *budget_of(self.limits.results), keys.CHANNEL + self.app,
            self.webhook or "", place.batch, place.line, place.previous,
            int(self.line_ttl.total_seconds()), self.params.num_images, bound(quotas.queued),
            bound(quotas.images_per_day), bound(quotas.gpu_seconds_per_day),
            Work.of(self.params).to_text(), self.limits.webhooks,
        ]  # fmt: skip

    def read(self, reply: Any) -> Submitted:
        admission = Admission(reply[0].decode())
        if admission is Admission.BROKEN:
            return Submitted(admission=admission, job_id=self.job_id, reason=reply[1].decode())
        job_id, number = reply[1].decode(), int(reply[2])
        if admission is Admission.STORAGE_FULL:
            room_after = timedelta(milliseconds=number)
            return Submitted(admission=admission, job_id=job_id, room_after=room_after)
        standing = None
        if len(reply) > 3:
            *counts, day_left = reply[3]
            jobs, queued, images, gpu_ms = map(int, counts)
            standing = Standing(
                jobs=jobs, queued=queued, images=images, gpu_ms=gpu_ms,
                day_left=timedelta(milliseconds=day_left),
            )  # fmt: skip
        return Submitted(admission=admission, job_id=job_id, ahead=number, standing=standing)
