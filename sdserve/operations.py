"""The job store's operations as typed values.

Each one names its Lua script, its keys and its arguments, and reads the reply. They carry no
connection, so one definition serves the blocking and the asyncio client (store.py).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar, Generic, TypeVar

from sdserve import keys
from sdserve.apps import (
    AppSpec,
    AppState,
    AppStatus,
    Backlog,
    LoadPace,
    LoadProgress,
    ReplicaPresence,
    RunningWork,
)
from sdserve.batches import BatchPlace
from sdserve.errors import JobExpiredError, JobNotFoundError
from sdserve.generation import ComputeMetrics, GenerationParams
from sdserve.jobs import ClaimedJob, Job, JobFailure, JobStatus, Preview
from sdserve.limits import Limits, ResultBudget
from sdserve.pace import FADING, Line, Measured, Pace, Work
from sdserve.usage import Spent, Usage

# The keys that common.lua makes itself, by the names it has for them.
_KEYS_OF_COMMON = {
    "USAGE": keys.USAGE,
    "PREVIEW": keys.PREVIEW,
    "HOOKS": keys.HOOKS,
    "HOOK": keys.HOOK,
    "BATCH": keys.BATCH,
}

Reply = TypeVar("Reply")
Argument = str | int | float | bytes

PACE_FIELDS = ("step", "picture", "file")  # of Pace, and with `pace_` before them of keys.APP
END_OF_QUEUE = "end"  # no job's id


class Operation(Generic[Reply]):
    """One atomic script call."""

    script: ClassVar[str]

    @property
    def keys(self) -> list[str]:
        raise NotImplementedError

    @property
    def arguments(self) -> list[Argument]:
        raise NotImplementedError

    def read(self, reply: Any) -> Reply:
        raise NotImplementedError


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
            # Hashed: a client's text never becomes part of a key.
            name = hashlib.sha256(f"{self.client}:{self.idempotency_key}".encode()).hexdigest()
            idempotency = f"{keys.IDEMPOTENCY}{app}:{name}"
        return [
            keys.JOB + self.job_id, keys.QUEUE + app, keys.LEASE + app, keys.REPLICAS + app,
            idempotency, keys.INDEX, f"{keys.INDEX}:{app}", keys.WAKE + app, keys.APP + app,
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
            _bound(quotas.jobs), *_budget(self.limits.results), keys.CHANNEL + self.app,
            self.webhook or "", place.batch, place.line, place.previous,
            int(self.line_ttl.total_seconds()), self.params.num_images, _bound(quotas.queued),
            _bound(quotas.images_per_day), _bound(quotas.gpu_seconds_per_day),
            Work.of(self.params).to_text(),
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


@dataclass(frozen=True, kw_only=True)
class Claim(Operation[list[ClaimedJob]]):
    """Lease up to `count` queued jobs to a replica: the first of the queue, in its order."""

    script: ClassVar[str] = "claim"
    app: str
    replica: str
    count: int
    lease: timedelta
    size: tuple[int, int] | None = None  # none behind one of another width and height, in pixels

    @property
    def keys(self) -> list[str]:
        app = self.app
        return [
            keys.QUEUE + app, keys.LEASE + app, keys.CLOCK + app, keys.SHARES + app, keys.LOAD,
        ]  # fmt: skip

    @property
    def arguments(self) -> list[Argument]:
        lease = _milliseconds(self.lease)
        size = "x".join(map(str, self.size)) if self.size else ""
        return [keys.JOB, self.replica, self.count, lease, keys.CHANNEL + self.app, size]

    def read(self, reply: Any) -> list[ClaimedJob]:
        return [
            ClaimedJob(
                id=job_id.decode(),
                fence=fence,
                params=GenerationParams.from_json(request),
                waited=waited / 1000,
            )
            for job_id, fence, request, waited in reply
        ]


@dataclass(frozen=True, kw_only=True)
class JobProgress:
    """How far a claimed job is, for one heartbeat."""

    job_id: str
    fence: int
    step: int
    phase: str


class Pulse(StrEnum):
    """What a heartbeat learns about one job."""

    OK = "ok"
    WATCHED = "watched"  # ok, and somebody wants to see previews
    CANCEL = "cancel"  # the user asked: stop within a step
    LOST = "lost"  # the claim is no longer ours: stop, nothing we write will count


@dataclass(frozen=True, kw_only=True)
class Beat(Operation[list[Pulse]]):
    """A replica's heartbeat: presence, leases, progress."""

    script: ClassVar[str] = "beat"
    app: str
    presence: ReplicaPresence
    lease: timedelta
    jobs: Sequence[JobProgress]

    @property
    def keys(self) -> list[str]:
        return [keys.REPLICAS + self.app, keys.LEASE + self.app, keys.APP + self.app]

    @property
    def arguments(self) -> list[Argument]:
        presence = json.dumps(asdict(self.presence))
        lease = _milliseconds(self.lease)
        arguments: list[Argument] = [
            keys.JOB, lease, self.presence.id, presence, lease, keys.CHANNEL + self.app,
        ]  # fmt: skip
        for job in self.jobs:
            arguments += [job.job_id, job.fence, job.step, job.phase]
        return arguments

    def read(self, reply: Any) -> list[Pulse]:
        return [Pulse(word.decode()) for word in reply]


class Ending(StrEnum):
    """What became of a finish."""

    FINISHED = "finished"
    CANCELLED = "cancelled"  # the user cancelled first: the result was dropped
    LOST = "lost"  # a late writer: nothing changed


@dataclass(frozen=True, kw_only=True)
class Finish(Operation[Ending]):
    """End a running job if the claim is still the caller's. Result blobs are stored before."""

    script: ClassVar[str] = "finish"
    app: str
    job_id: str
    fence: int
    status: JobStatus
    job_ttl: timedelta
    results: ResultBudget
    result_keys: Sequence[str] = ()
    image_seeds: Sequence[int] = ()
    metrics: ComputeMetrics | None = None
    error: JobFailure | None = None
    measured: Measured | None = None  # of a succeeded job: the app's pace learns from it
    spent: Spent = field(default_factory=Spent)

    @property
    def keys(self) -> list[str]:
        return [
            keys.JOB + self.job_id, keys.LEASE + self.app, keys.APP + self.app, keys.LOAD,
            keys.RESULTS, *self.result_keys,
        ]  # fmt: skip

    @property
    def meta(self) -> str:
        """What the store keeps of how the job ended, as JSON."""
        meta = {
            "results": list(self.result_keys),
            "seeds": list(self.image_seeds),
            "metrics": asdict(self.metrics) if self.metrics else None,
            "error": asdict(self.error) if self.error else None,
        }
        return json.dumps(meta)

    @property
    def arguments(self) -> list[Argument]:
        observations = self.measured.observations if self.measured else []
        return [
            self.job_id, self.fence, self.status, self.meta,
            int(self.job_ttl.total_seconds()), keys.CHANNEL + self.app, *_budget(self.results),
            json.dumps(asdict(self.spent)), FADING,
            *(part for pair in observations for part in pair),
        ]  # fmt: skip

    def read(self, reply: Any) -> Ending:
        return Ending(reply.decode())


@dataclass(frozen=True, kw_only=True)
class Release(Operation[bool]):
    """Give a claimed job back at its old place. False: the claim was no longer ours."""

    script: ClassVar[str] = "release"
    app: str
    job_id: str
    fence: int
    job_ttl: timedelta  # for a job that ends here: it was cancelled, or its app is gone

    @property
    def keys(self) -> list[str]:
        app = self.app
        return [
            keys.JOB + self.job_id, keys.QUEUE + app, keys.LEASE + app, keys.WAKE + app,
            keys.APP + app, keys.LOAD,
        ]  # fmt: skip

    @property
    def arguments(self) -> list[Argument]:
        ttl = int(self.job_ttl.total_seconds())
        return [self.job_id, self.fence, keys.CHANNEL + self.app, ttl]

    def read(self, reply: Any) -> bool:
        return reply == 1


@dataclass(frozen=True, kw_only=True)
class Reaped:
    """What a reap did."""

    requeued: int
    ended: int


@dataclass(frozen=True, kw_only=True)
class Reap(Operation[Reaped]):
    """Take back the leases that have run out."""

    script: ClassVar[str] = "reap"
    app: str
    job_ttl: timedelta
    limit: int = 100

    @property
    def keys(self) -> list[str]:
        app = self.app
        return [keys.QUEUE + app, keys.LEASE + app, keys.WAKE + app, keys.APP + app, keys.LOAD]

    @property
    def arguments(self) -> list[Argument]:
        return [keys.JOB, self.limit, int(self.job_ttl.total_seconds()), keys.CHANNEL + self.app]

    def read(self, reply: Any) -> Reaped:
        return Reaped(requeued=reply[0], ended=reply[1])


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
class Drain(Operation[int]):
    """Fail the queued jobs of an app with one reason; `broken` also refuses new ones.

    At most `limit` jobs in one call, for it blocks the server: `RedisJobStore.drain` goes on.
    """

    script: ClassVar[str] = "drain"
    app: str
    failure: JobFailure
    job_ttl: timedelta
    broken: bool
    spec: AppSpec | None = None  # only if the app is still deployed as this
    limit: int = 1000

    @property
    def keys(self) -> list[str]:
        app = self.app
        return [keys.QUEUE + app, keys.APP + app, keys.APPS, keys.LOAD, keys.SHARES + app]

    @property
    def arguments(self) -> list[Argument]:
        return [
            keys.JOB, self.failure.code, self.failure.message, int(self.job_ttl.total_seconds()),
            keys.CHANNEL + self.app, int(self.broken), self.app,
            self.spec.to_json() if self.spec else "", self.limit,
        ]  # fmt: skip

    def read(self, reply: Any) -> int:
        return int(reply)


@dataclass(frozen=True, kw_only=True)
class ViewApp(Operation[AppStatus]):
    """An app at one moment; with the work before a job, if that is asked for."""

    script: ClassVar[str] = "view_app"
    app: str
    before: str | None = None  # a job's id, or END_OF_QUEUE
    limit: int = 100  # jobs told one by one, of those that wait and of those that run

    @property
    def keys(self) -> list[str]:
        app = self.app
        return [keys.QUEUE + app, keys.LEASE + app, keys.REPLICAS + app, keys.APP + app]

    @property
    def arguments(self) -> list[Argument]:
        return [keys.JOB, self.before or "", self.limit]

    def read(self, reply: Any) -> AppStatus:
        now, queued, running, presences, notes, work = reply
        broken, wish, device, file_bytes, load, *lines = texts(notes)
        replicas = sorted((_presence(text, now) for text in presences), key=lambda told: told.id)
        return AppStatus(
            state=app_state(replicas, queued + running, broken=broken is not None),
            phase=replicas[0].phase if replicas else None,
            queued=queued,
            running=running,
            replicas=tuple(replicas),
            broken_reason=broken,
            pace=Pace(**dict(zip(PACE_FIELDS, map(Line.from_text, lines), strict=True))),
            load=LoadPace(**json.loads(load)) if load else None,
            file_bytes=int(file_bytes) if file_bytes else None,
            wished=wish is not None and float(wish) > now,
            device=device or "GPU",
            backlog=_backlog(self.before, work) if self.before else None,
        )


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
        return [keys.JOB + self.job_id, keys.INDEX]

    @property
    def arguments(self) -> list[Argument]:
        return [self.job_id, keys.QUEUE]

    def read(self, reply: Any) -> Job:
        if reply[0] == b"missing":
            raise JobNotFoundError(self.job_id)
        if reply[0] == b"expired":
            raise JobExpiredError(self.job_id)
        return job_of(fields_of(reply[1]), position=reply[2])


def fields_of(flat: Sequence[bytes]) -> dict[str, str]:
    """A hash as Lua gives it: names and values in turn."""
    return {flat[i].decode(): flat[i + 1].decode() for i in range(0, len(flat), 2)}


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
        created_at=_time(fields["created"]),
        started_at=_time(fields["started"]) if "started" in fields else None,
        finished_at=_time(fields["ended"]) if "ended" in fields else None,
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
        return [_milliseconds(self.span)]

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
            _milliseconds(self.ttl), keys.CHANNEL + self.app,
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


@cache
def script_text(name: str) -> str:
    """The script, with what all scripts share after its first line, which names its flags."""
    names = "".join(f"local {name} = '{key}'\n" for name, key in _KEYS_OF_COMMON.items())
    folder = files("sdserve").joinpath("lua")
    flags, body = folder.joinpath(f"{name}.lua").read_text().split("\n", 1)
    return f"{flags}\n{names}{folder.joinpath('common.lua').read_text()}{body}"


def app_state(replicas: Sequence[ReplicaPresence], work: int, *, broken: bool) -> AppState:
    """What an app with these live replicas and so many unfinished jobs can do."""
    slots = sum(replica.slots for replica in replicas if replica.state is not AppState.LOADING)
    if broken:
        return AppState.BROKEN
    if not replicas:
        return AppState.COLD
    if slots == 0:
        return AppState.LOADING
    return AppState.BUSY if work >= slots else AppState.READY


def texts(values: Any) -> list[str | None]:
    """Redis' bytes as text."""
    return [value.decode() if value else None for value in values]


def _presence(text: bytes, now: int) -> ReplicaPresence:
    """As a replica told it; how long it has been loading is counted on until now."""
    fields: dict[str, Any] = json.loads(text)
    told, load, _ = fields.pop("told"), fields.pop("load"), fields.pop("until")
    state = AppState(fields.pop("state"))
    presence = ReplicaPresence(state=state, **fields)
    if load is None:
        return presence
    return replace(presence, load=LoadProgress(**load).later((now - told) / 1000))


def _backlog(before: str, reply: Any) -> Backlog:
    position, queued, running = reply
    works = [Work.from_text(text) if text else None for text in texts(queued)]
    return Backlog(
        before=before,
        position=position,
        queued=tuple(works),
        running=tuple(
            RunningWork(
                job_id=job_id.decode(),
                owner=owner.decode(),
                work=Work.from_text(work.decode()) if work else None,
                step=int(step),
                seconds=seconds / 1000,
                age=age / 1000,
            )
            for job_id, owner, work, step, seconds, age in running
        ),
    )


def _bound(bound: int | None) -> Argument:
    return "" if bound is None else bound


def _budget(budget: ResultBudget) -> list[Argument]:
    return [budget.bytes, _milliseconds(budget.ttl), _milliseconds(budget.keep)]


def _milliseconds(span: timedelta) -> int:
    return int(span.total_seconds() * 1000)


def _time(milliseconds: str) -> datetime:
    return datetime.fromtimestamp(float(milliseconds) / 1000, UTC)
