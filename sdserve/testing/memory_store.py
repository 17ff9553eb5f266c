"""The job store in memory: what the scripts of sdserve/lua do, said once more in Python.

One process, nothing kept when it ends. It passes the same tests as the real one and is the model
that a state machine compares the real one with.
"""

import json
import math
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sdserve.apps import (
    AppOutlook,
    AppSpec,
    AppState,
    AppStatus,
    Backlog,
    LoadPace,
    ReplicaPresence,
    RunningWork,
)
from sdserve.batch_operations import ReadPart
from sdserve.batches import Part
from sdserve.errors import JobExpiredError, JobNotFoundError
from sdserve.job_list import JobPage, ListJobs
from sdserve.jobs import ClaimedJob, Job, JobFailure, JobStatus, Preview
from sdserve.limits import UNRUN_LIMIT, UNRUN_TTL, ResultBudget
from sdserve.operations import (
    END_OF_QUEUE,
    Admission,
    Beat,
    Cancel,
    Claim,
    Drain,
    Ending,
    Finish,
    JobProgress,
    Look,
    Operation,
    Place,
    Pulse,
    Reap,
    Reaped,
    Release,
    Seen,
    ShowPreview,
    Standing,
    Submit,
    Submitted,
    TakeTurn,
    Turn,
    ViewApp,
    ViewJob,
    ViewOutlooks,
    ViewPlaces,
    ViewPreview,
    Watch,
    app_outlook,
    app_state,
)
from sdserve.pace import Pace, Work
from sdserve.testing.memory_batches import InMemoryBatches
from sdserve.testing.memory_keys import InMemoryKeys
from sdserve.testing.memory_list import IndexEntry, list_jobs
from sdserve.testing.memory_outbox import MemoryOutbox
from sdserve.usage import ALL_APPS, DAY_MS, Usage, field_name

Reply = TypeVar("Reply")

UNCLAIMED_RESULT_TTL = timedelta(minutes=5)
NOTHING = Usage()


@dataclass(kw_only=True)
class _Record:
    submit: Submit
    created: float
    start: float  # of its place in the queue, on the app's clock
    max_attempts: int
    status: JobStatus = JobStatus.QUEUED
    attempt: int = 0
    started: float | None = None
    ended: float | None = None
    step: int = 0
    told: float = 0  # when its replica said so
    phase: str | None = None
    owner: str | None = None
    is_cancelled: bool = False
    version: int = 1
    watched_until: float = 0
    preview: tuple[Preview, int, float] | None = None  # of which attempt, until when
    finish: Finish | None = None  # that ended it
    error: JobFailure | None = None
    expires: float | None = None
    usage: Usage | None = None  # once it has ended

    @property
    def score(self) -> float:
        return self.start - self.submit.priority / 100

    @property
    def steps(self) -> int:
        return self.submit.params.total_steps


@dataclass(kw_only=True)
class _Flow:
    """What a client waits for in an app, or the lines of its batches there."""

    served: float = 0  # where the last of its claimed jobs ended
    ends: dict[int, float] = field(default_factory=dict[int, float])  # priority -> next start
    again: dict[int, float] = field(default_factory=dict[int, float])  # of those that made room

    def end(self, priority: int) -> float:
        """Nothing of this priority or a higher one starts before."""
        return max(self.served, *(end for level, end in self.ends.items() if level >= priority), 0)

    def shift_lower(self, priority: int, start: float, steps: int) -> None:
        for level, end in self.ends.items():
            if level < priority and end > start:
                self.ends[level] = end + steps


@dataclass(kw_only=True)
class _App:
    queue: dict[str, float] = field(default_factory=dict)  # job id -> score
    leases: dict[str, float] = field(default_factory=dict)  # job id -> end
    replicas: dict[str, tuple[ReplicaPresence, float, float]] = field(default_factory=dict)
    clock: float = 0  # steps served
    flows: defaultdict[tuple[str, bool], _Flow] = field(default_factory=lambda: defaultdict(_Flow))
    broken: JobFailure | None = None
    pace: Pace = field(default_factory=Pace)
    load: LoadPace | None = None
    file_bytes: int | None = None
    load_failures: int = 0
    wish_until: float = 0
    device: str = "GPU"

    def in_order(self) -> list[str]:
        return sorted(self.queue, key=lambda job_id: (self.queue[job_id], job_id))

    def live(self, now: float) -> list[ReplicaPresence]:
        live = list[ReplicaPresence]()
        for presence, told, until in self.replicas.values():
            load = presence.load and presence.load.later(now - told)
            if until > now:
                live.append(replace(presence, load=load))
        return sorted(live, key=lambda presence: presence.id)


class InMemoryJobStore:
    """A job store with the face of `RedisJobStore`. Safe to share between threads."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        """Be empty.

        Args:
            clock: seconds since 1970.
        """
        self._clock = clock
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._jobs: dict[str, _Record] = {}
        self._index: dict[str, IndexEntry] = {}  # by job id
        self._apps: defaultdict[str, _App] = defaultdict(_App)
        self._specs: dict[str, AppSpec] = {}
        self._keys: dict[tuple[str, str, str], tuple[str, str, float]] = {}
        self._load: Counter[str] = Counter()
        self._unrun: defaultdict[str, deque[str]] = defaultdict(deque)  # by client
        self._blobs: dict[str, tuple[bytes, float]] = {}  # key -> bytes, end
        self._results: dict[str, tuple[int, float]] = {}  # key -> size, stored
        self._turns: dict[str, float] = {}  # chore -> when its next turn comes
        self._outbox = MemoryOutbox()
        self._batches = InMemoryBatches(self._outbox)
        self._keyring = InMemoryKeys()
        self._usage: defaultdict[int, Counter[str]] = defaultdict(Counter)  # day -> field -> amount
        self._operations: dict[str, Callable[[Any, float], Any]] = {
            "submit": self._submit,
            "claim": self._claim,
            "beat": self._beat,
            "finish": self._finish,
            "release": self._release,
            "reap": self._reap,
            "cancel": self._cancel,
            "drain": self._drain,
            "take_turn": self._take_turn,
            "watch": self._watch,
            "preview": self._show_preview,
            "view_app": self._view_app,
            "view_outlooks": self._view_outlooks,
            "view_job": self._view_job,
            "look": self._look,
            "list_jobs": self._list_jobs,
            "put_part": self._batches.put_part,
            "create_batch": self._batches.create,
            "close_lines": self._batches.close_lines,
            "fail_line": self._batches.fail_line,
            "view_batch": self._batches.view,
            "list_batches": self._batches.list_ids,
            "open_batches": self._batches.open_ids,
            "read_part": self._read_part,
            "pack_part": self._batches.pack_part,
            "view_places": self._view_places,
            **self._outbox.operations,
            "view_preview": self._view_preview,
            **self._keyring.operations,
        }

    def run(self, operation: Operation[Reply]) -> Reply:
        """Run one operation."""
        with self._lock:
            # Whole milliseconds, as the scripts have: a time is the same wherever it is read.
            now = math.floor(self._clock() * 1000) / 1000
            return self._operations[operation.script](operation, now)

    # --- the operations ----------------------------------------------------------------------

    def _submit(self, op: Submit, now: float) -> Submitted:
        app = self._apps[op.app]
        if known := self._known(op, now) or self._refuse(op, app, now):
            return known
        ready = [each for each in app.live(now) if each.state is not AppState.LOADING]
        slots = sum(each.slots for each in ready)
        busy = len(app.queue) + len(app.leases)
        flow = app.flows[_flow(op)]
        start = max(app.clock, flow.end(op.priority))
        flow.ends[op.priority] = start + op.params.total_steps
        flow.shift_lower(op.priority, start, op.params.total_steps)
        record = _Record(submit=op, created=now, start=start, max_attempts=op.max_attempts)
        self._jobs[op.job_id] = record
        app.queue[op.job_id] = record.score
        self._index[op.job_id] = IndexEntry(created=now, client=op.client, app=op.app)
        self._count(op, 1)
        self._count_one("queued:" + op.client, 1)
        if op.place is not None:
            self._batches.hand_over(op.place, op.app, op.job_id)
        if op.idempotency_key is not None:
            ends = now + op.idempotency_ttl.total_seconds()
            self._keys[op.app, op.client, op.idempotency_key] = (op.job_id, op.digest, ends)
        self._work.notify_all()
        admission = Admission.RUN_NOW if busy < slots else Admission.QUEUED
        ahead = app.in_order().index(op.job_id)
        standing = self._standing(op.client, now) if op.client else None
        return Submitted(admission=admission, job_id=op.job_id, ahead=ahead, standing=standing)

    def _known(self, op: Submit, now: float) -> Submitted | None:
        """The answer to what was asked before, or comes too late."""
        key = (op.app, op.client, op.idempotency_key or "")
        if op.idempotency_key is not None and key in self._keys and self._keys[key][2] > now:
            known, digest, _ = self._keys[key]
            same = digest == op.digest
            admission = Admission.DUPLICATE if same else Admission.CONFLICT
            return Submitted(admission=admission, job_id=known)
        if op.place is not None:
            if self._batches.is_closed(op.place, op.app, now):
                return Submitted(admission=Admission.CLOSED, job_id=op.job_id)
            if self._batches.has_had_its_turn(op.place, op.app):
                return Submitted(admission=Admission.DUPLICATE, job_id=op.job_id)
        if self._alive(op.job_id, now):
            return Submitted(admission=Admission.DUPLICATE, job_id=op.job_id)
        return None

    def _refuse(self, op: Submit, app: _App, now: float) -> Submitted | None:
        def answer(admission: Admission, **more: Any) -> Submitted:
            return Submitted(admission=admission, job_id=op.job_id, **more)

        if app.broken:
            return answer(Admission.BROKEN, reason=app.broken.message)
        if len(app.queue) >= op.queue_limit:
            return answer(Admission.FULL, ahead=len(app.queue))
        if self._load["all"] >= op.limits.jobs:
            return answer(Admission.SERVER_FULL, ahead=self._load["all"])
        has = self._standing(op.client, now) if op.client else None
        if has and (over := _over_quota(op, has)):
            return answer(over[0], ahead=over[1], standing=has)
        waiting = self._outbox.waiting_of(op.client)
        if op.webhook is not None and waiting >= op.limits.webhooks:
            return answer(Admission.WEBHOOKS_FULL, ahead=waiting, standing=has)
        if self._make_room(op.limits.results, now) > op.limits.results.bytes:
            oldest = min(stored for _, stored in self._results.values())
            left = oldest + op.limits.results.keep.total_seconds() - now
            return answer(Admission.STORAGE_FULL, room_after=timedelta(seconds=max(0.0, left)))
        return None

    def _claim(self, op: Claim, now: float) -> list[ClaimedJob]:
        app = self._apps[op.app]
        claimed = list[ClaimedJob]()
        while app.queue and len(claimed) < op.count:
            job_id = min(app.queue, key=lambda each: (app.queue[each], each))
            record = self._jobs[job_id]
            if self._makes_room(app, record):
                continue
            asked = record.submit.params
            if op.size and op.size != (asked.width, asked.height):
                break
            del app.queue[job_id]
            app.clock = max(app.clock, record.start)
            flow = app.flows[_flow(record.submit)]
            flow.served = max(flow.served, record.start + record.steps)
            record.attempt += 1
            record.status, record.owner, record.started = JobStatus.RUNNING, op.replica, now
            record.told = now
            record.step, record.phase = 0, "starting"
            self._count_one("queued:" + record.submit.client, -1)
            record.version += 1
            app.leases[job_id] = now + op.lease.total_seconds()
            claimed.append(
                ClaimedJob(
                    id=job_id,
                    fence=record.attempt,
                    params=record.submit.params,
                    waited=now - record.created,
                )
            )
        if not app.queue:
            app.flows.clear()
        return claimed

    def _makes_room(self, app: _App, record: _Record) -> bool:
        """Put the next job back if more urgent ones of its client go before. Answers whether."""
        flow, priority = app.flows[_flow(record.submit)], record.submit.priority
        earliest = flow.end(priority + 1)
        if record.attempt or record.start >= earliest:
            return False
        record.start = max(earliest, flow.again.get(priority, 0))
        flow.again[priority] = record.start + record.steps
        app.queue[record.submit.job_id] = record.score
        return True

    def _beat(self, op: Beat, now: float) -> list[Pulse]:
        app = self._apps[op.app]
        until = now + op.lease.total_seconds()
        mine = op.presence.id
        app.replicas[mine] = (op.presence, now, until)
        for name, (presence, _, end) in list(app.replicas.items()):
            if end <= now and name != mine:
                del app.replicas[name]
                app.load_failures += presence.state is AppState.LOADING
        return [self._pulse(app, job, until, now) for job in op.jobs]

    def _pulse(self, app: _App, job: JobProgress, until: float, now: float) -> Pulse:
        record = self._jobs.get(job.job_id)
        if record is None or not _holds(record, job.fence):
            return Pulse.LOST
        if job.job_id in app.leases:
            app.leases[job.job_id] = until
        record.version += (record.step, record.phase) != (job.step, job.phase)
        record.step, record.phase, record.told = job.step, job.phase, now
        if record.is_cancelled:
            return Pulse.CANCEL
        return Pulse.WATCHED if record.watched_until > now else Pulse.OK

    def _finish(self, op: Finish, now: float) -> Ending:
        record = self._alive(op.job_id, now)
        if record and record.finish and record.finish.fence == op.fence:  # its reply was lost
            if record.status is not JobStatus.CANCELLED:
                return Ending.FINISHED
            self._forget(op.result_keys)
            return Ending.CANCELLED
        if record is None or not _holds(record, op.fence):
            self._forget(op.result_keys)
            return Ending.LOST
        app = self._apps[op.app]
        status = JobStatus.CANCELLED if record.is_cancelled else op.status
        is_stored = all(self._is_kept(name, now) for name in op.result_keys)
        if status is not JobStatus.CANCELLED and not is_stored:
            return Ending.UNSTORED
        record.finish = op
        used = Usage(**asdict(op.spent))
        if status is JobStatus.CANCELLED:
            self._forget(op.result_keys)
        else:
            record.error = op.error
            used += Usage(images=len(op.result_keys))
            for name in op.result_keys:
                blob, _ = self._blobs[name]
                self._blobs[name] = (blob, now + op.results.ttl.total_seconds())
                self._results[name] = (len(blob), now)
                used += Usage(result_bytes=len(blob))
            self._make_room(op.results, now)
        app.leases.pop(op.job_id, None)
        if status is JobStatus.SUCCEEDED and op.measured:
            app.pace = app.pace.seen(op.measured)
        self._end(record, status, now, op.job_ttl, used)
        cancelled = status is JobStatus.CANCELLED
        return Ending.CANCELLED if cancelled else Ending.FINISHED

    def _is_kept(self, name: str, now: float) -> bool:
        blob = self._blobs.get(name)
        return blob is not None and blob[1] > now

    def _release(self, op: Release, now: float) -> bool:
        record = self._alive(op.job_id, now)
        if record is None or not _holds(record, op.fence):
            return False
        self._apps[op.app].leases.pop(op.job_id, None)
        record.max_attempts += 1
        self._hand_back(record, now, op.job_ttl)
        return True

    def _reap(self, op: Reap, now: float) -> Reaped:
        app = self._apps[op.app]
        over = sorted((end, job_id) for job_id, end in app.leases.items() if end <= now)
        requeued = ended = 0
        for _, job_id in over[: op.limit]:
            del app.leases[job_id]
            record = self._jobs[job_id]
            if not record.is_cancelled and record.attempt >= record.max_attempts:
                record.error = JobFailure(code="worker_lost", message=_worker_lost(record.attempt))
                self._end(record, JobStatus.FAILED, now, op.job_ttl)
                ended += 1
            elif self._hand_back(record, now, op.job_ttl) is JobStatus.QUEUED:
                requeued += 1
            else:
                ended += 1
        return Reaped(requeued=requeued, ended=ended)

    def _cancel(self, op: Cancel, now: float) -> JobStatus | None:
        record = self._alive(op.job_id, now)
        if record is None:
            return None
        found = record.status
        if found is JobStatus.RUNNING:
            record.version += not record.is_cancelled
        if not found.is_final:
            record.is_cancelled = True
        if found is JobStatus.QUEUED:
            app = self._apps[op.app]
            del app.queue[op.job_id]
            # What was not served is not charged.
            flow, priority = app.flows[_flow(record.submit)], record.submit.priority
            if priority in flow.ends:
                flow.ends[priority] -= record.steps
            flow.shift_lower(priority, -math.inf, -record.steps)
            self._end(record, JobStatus.CANCELLED, now, op.job_ttl)
            if not record.attempt and record.submit.place is None:
                self._keep_shortly(record, now)
        return found

    def _keep_shortly(self, record: _Record, now: float) -> None:
        """Of jobs that never ran the records go soon, and too many of one client at once."""
        unrun = self._unrun[record.submit.client]
        record.expires = min(record.expires or math.inf, now + UNRUN_TTL.total_seconds())
        unrun.append(record.submit.job_id)
        if len(unrun) > UNRUN_LIMIT:
            oldest = unrun.popleft()
            self._jobs.pop(oldest, None)
            self._index.pop(oldest, None)

    def _drain(self, op: Drain, now: float) -> int:
        app = self._apps[op.app]
        if op.spec and self._specs.get(op.app) != op.spec:
            return 0
        if op.broken:
            app.broken = op.failure
        ids = app.in_order()[: op.limit]
        for job_id in ids:
            del app.queue[job_id]
            self._jobs[job_id].error = op.failure
            self._end(self._jobs[job_id], JobStatus.FAILED, now, op.job_ttl)
        app.flows.clear()
        return len(ids)

    def _view_app(self, op: ViewApp, now: float) -> AppStatus:
        app = self._apps[op.app]
        replicas = tuple(app.live(now))
        work = len(app.queue) + len(app.leases)
        return AppStatus(
            state=app_state(replicas, work, broken=app.broken is not None),
            phase=replicas[0].phase if replicas else None,
            queued=len(app.queue),
            running=len(app.leases),
            replicas=replicas,
            broken_reason=app.broken.message if app.broken else None,
            pace=app.pace,
            load=app.load,
            file_bytes=app.file_bytes,
            wished=app.wish_until > now,
            device=app.device,
            backlog=self._backlog(app, op.before, op.limit, now) if op.before else None,
        )

    def _view_outlooks(self, op: ViewOutlooks, now: float) -> list[AppOutlook]:
        return [
            app_outlook(
                app.live(now),
                len(app.queue) + len(app.leases),
                app.broken.message if app.broken else None,
            )
            for app in map(self._apps.__getitem__, op.apps)
        ]

    def _backlog(self, app: _App, before: str, limit: int, now: float) -> Backlog:
        in_order = app.in_order()
        if before == END_OF_QUEUE:
            position = len(in_order)
        else:
            position = in_order.index(before) if before in app.queue else None
        ahead = [self._jobs[job_id] for job_id in in_order[: min(position or 0, limit)]]
        by_end = sorted(app.leases, key=lambda job_id: (app.leases[job_id], job_id))
        running = list[RunningWork]()
        for job_id in by_end[:limit]:
            record = self._jobs[job_id]
            running.append(
                RunningWork(
                    job_id=job_id,
                    owner=record.owner or "",
                    work=Work.of(record.submit.params),
                    step=record.step,
                    seconds=record.told - (record.started or 0),
                    age=now - record.told,
                )
            )
        works = tuple(Work.of(record.submit.params) for record in ahead)
        return Backlog(before=before, position=position, queued=works, running=tuple(running))

    def _view_job(self, op: ViewJob, now: float) -> Job:
        record = self._alive(op.job_id, now)
        if record is None:
            known = op.job_id in self._index
            raise JobExpiredError(op.job_id) if known else JobNotFoundError(op.job_id)
        submit = record.submit
        is_queued = record.status is JobStatus.QUEUED
        result = record.finish if record.status is JobStatus.SUCCEEDED else None
        return Job(
            id=op.job_id,
            app=submit.app,
            model=submit.model,
            status=record.status,
            params=submit.params,
            created_at=datetime.fromtimestamp(record.created, UTC),
            started_at=datetime.fromtimestamp(record.started, UTC) if record.started else None,
            finished_at=datetime.fromtimestamp(record.ended, UTC) if record.ended else None,
            phase=record.phase,
            step=submit.params.total_steps if result else record.step,
            position=self._apps[submit.app].in_order().index(op.job_id) if is_queued else None,
            attempt=record.attempt,
            cancel_requested=record.is_cancelled,
            version=record.version,
            client=submit.client,
            owner=record.owner,
            result_keys=tuple(result.result_keys) if result else (),
            image_seeds=tuple(result.image_seeds) if result else (),
            metrics=result.metrics if result else None,
            error=record.error,
            batch=submit.place.batch if submit.place else None,
            line=submit.place.line if submit.place else None,
            usage=record.usage,
        )

    def _look(self, op: Look, now: float) -> Seen:
        job = self._view_job(ViewJob(job_id=op.job_id), now)
        view = ViewApp(app=job.app, before=job.id, limit=op.limit)
        return Seen(job=job, app=None if job.status.is_final else self._view_app(view, now))

    def _list_jobs(self, op: ListJobs, now: float) -> JobPage:
        def view(job_id: str) -> Job | None:
            alive = self._alive(job_id, now)
            return self._view_job(ViewJob(job_id=job_id), now) if alive else None

        return list_jobs(op, self._index, view)

    def _read_part(self, op: ReadPart, now: float) -> Part:
        places = {
            job_id: (record.submit.place.line, record.status)
            for job_id, record in self._jobs.items()
            if record.submit.place and record.submit.place.batch == op.batch_id
        }
        return self._batches.read_part(op, now, places)

    def _view_places(self, op: ViewPlaces, now: float) -> list[Place]:
        waiting = self._apps[op.app].in_order()
        places = list[Place]()
        for job_id in op.job_ids:
            record = self._alive(job_id, now)
            position = waiting.index(job_id) if job_id in waiting else None
            places.append(Place(version=record.version if record else None, position=position))
        return places

    def _take_turn(self, op: TakeTurn, now: float) -> Turn:
        is_mine = self._turns.get(op.chore, now) <= now
        if is_mine:
            self._turns[op.chore] = now + op.interval.total_seconds()
        return Turn(is_mine=is_mine, left=timedelta(seconds=self._turns[op.chore] - now))

    def _watch(self, op: Watch, now: float) -> JobStatus | None:
        record = self._alive(op.job_id, now)
        if record and not record.status.is_final:
            record.watched_until = now + op.span.total_seconds()
        return record.status if record else None

    def _show_preview(self, op: ShowPreview, now: float) -> bool:
        record = self._alive(op.job_id, now)
        if record is None or not _holds(record, op.fence):
            return False
        record.preview = op.preview, op.fence, now + op.ttl.total_seconds()
        return True

    def _view_preview(self, op: ViewPreview, now: float) -> Preview | None:
        record = self._alive(op.job_id, now)
        if record is None or record.preview is None:
            return None
        preview, fence, end = record.preview
        return preview if _holds(record, fence) and end > now else None

    # --- what they share ---------------------------------------------------------------------

    def _alive(self, job_id: str, now: float) -> _Record | None:
        record = self._jobs.get(job_id)
        if record and record.expires is not None and record.expires <= now:
            del self._jobs[job_id]
            return None
        return record

    def _standing(self, client: str, now: float) -> Standing:
        day = int(now * 1000) // DAY_MS
        today = self._usage[day]
        return Standing(
            jobs=self._load["client:" + client],
            queued=self._load["queued:" + client],
            images=today[field_name(client, ALL_APPS, "images")] + self._load["images:" + client],
            gpu_ms=today[field_name(client, ALL_APPS, "gpu_ms")],
            day_left=timedelta(milliseconds=(day + 1) * DAY_MS - int(now * 1000)),
        )

    def _count_one(self, name: str, change: int) -> None:
        self._load[name] += change
        if self._load[name] <= 0:
            del self._load[name]

    def _count(self, op: Submit, change: int) -> None:
        for name in ("all", "app:" + op.app, "client:" + op.client):
            self._count_one(name, change)
        self._count_one("images:" + op.client, change * op.params.num_images)

    def _end(
        self,
        record: _Record,
        status: JobStatus,
        now: float,
        ttl: timedelta,
        used: Usage = NOTHING,
    ) -> None:
        if record.status is JobStatus.QUEUED:
            self._count_one("queued:" + record.submit.client, -1)
        record.status, record.ended = status, now
        record.owner = record.phase = record.preview = None
        record.version += 1
        place = record.submit.place
        record.expires = now + (record.submit.line_ttl if place else ttl).total_seconds()
        self._count(record.submit, -1)
        if place is not None:
            self._batches.end_line(place, record.submit.job_id, status, _meta(record), now, ttl)
        record.usage = used + Usage(**{f"jobs_{status}": 1})
        day = self._usage[int(now * 1000) // DAY_MS]
        for metric, amount in record.usage.nonzero().items():
            for app in (record.submit.app, ALL_APPS):
                day[field_name(record.submit.client, app, metric)] += amount
        if record.submit.webhook is not None:
            self._outbox.tell(
                "job", record.submit.job_id, status, record.submit.webhook, _fields(record), now
            )

    def _hand_back(self, record: _Record, now: float, ttl: timedelta) -> JobStatus:
        app = self._apps[record.submit.app]
        if record.is_cancelled:
            self._end(record, JobStatus.CANCELLED, now, ttl)
        elif app.broken:
            record.error = app.broken
            self._end(record, JobStatus.FAILED, now, ttl)
        else:
            record.status, record.step = JobStatus.QUEUED, 0
            record.owner = record.phase = record.preview = None
            record.version += 1
            app.queue[record.submit.job_id] = record.score
            self._count_one("queued:" + record.submit.client, 1)
            self._work.notify_all()
        return record.status

    def _make_room(self, budget: ResultBudget, now: float) -> int:
        # Of the same age the order is that of the real one's entries.
        oldest = sorted(
            (stored, f"{size} {name}", name) for name, (size, stored) in self._results.items()
        )
        for stored, _, name in oldest:
            is_over = sum(size for size, _ in self._results.values()) > budget.bytes
            is_old = stored <= now - budget.keep.total_seconds()
            if stored <= now - budget.ttl.total_seconds() or (is_over and is_old):
                self._forget([name])
                del self._results[name]
        return sum(size for size, _ in self._results.values())

    def _forget(self, names: Sequence[str]) -> None:
        for name in names:
            self._blobs.pop(name, None)

    # --- the rest of the store's face --------------------------------------------------------

    def usage_days(self) -> list[int]:
        """The days on which anything was counted."""
        with self._lock:
            return sorted(self._usage)

    def usage(self, day: int) -> dict[str, int]:
        """The hash of a day: `field_name` -> amount."""
        with self._lock:
            return dict(self._usage[day])

    def app_status(self, app: str) -> AppStatus:
        return self.run(ViewApp(app=app))

    def finish(self, finish: Finish, images: Sequence[bytes]) -> Ending:
        """Store the images of an attempt and end its job."""
        with self._lock:
            now = self._clock()
            end = now + UNCLAIMED_RESULT_TTL.total_seconds()
            for name, image in zip(finish.result_keys, images, strict=True):
                if not self._is_kept(name, now):
                    self._blobs[name] = image, end
        return self.run(finish)

    def results(self, names: Sequence[str]) -> list[bytes | None]:
        """The images behind these keys; None for one that has expired."""
        with self._lock:
            now = self._clock()
            return [self._blobs[name][0] if self._is_kept(name, now) else None for name in names]

    def wait_for_work(self, app: str, seconds: float) -> None:
        """Block until a job may be waiting, or for `seconds`."""
        with self._work:
            if not self._apps[app].queue:
                self._work.wait(seconds)

    def leave(self, app: str, replica: str) -> None:
        """A replica says goodbye: at once, nobody counts on its slots."""
        with self._lock:
            self._apps[app].replicas.pop(replica, None)

    def note_load(self, app: str, load: LoadPace) -> None:
        """Remember what a start took, for the next cold ETA; it ends a run of failures."""
        with self._lock:
            self._apps[app].load = load
            self._apps[app].load_failures = 0

    def count_load_failure(self, app: str) -> int:
        """One more start of this app has failed. Returns how many in a row."""
        with self._lock:
            self._apps[app].load_failures += 1
            return self._apps[app].load_failures

    def load_failures(self, app: str) -> int:
        """How many starts in a row have failed or died on the way."""
        with self._lock:
            return self._apps[app].load_failures

    def heal(self, app: str) -> None:
        """Forget that an app was broken (a redeploy)."""
        with self._lock:
            self._apps[app].broken = None
            self._apps[app].load_failures = 0

    def drain(self, drain: Drain) -> int:
        """Fail all queued jobs of an app. Returns how many they were."""
        drained = 0
        while part := self.run(drain):
            drained += part
        return drained

    def unfinished(self) -> list[str]:
        """The apps that have jobs which have not ended, deployed or not."""
        with self._lock:
            return sorted(name[4:] for name in self._load if name.startswith("app:"))

    def wish_replica(self, app: str, seconds: float) -> None:
        """Ask for a warm replica ahead of traffic, for so long."""
        with self._lock:
            self._apps[app].wish_until = self._clock() + seconds

    def register_app(self, spec: AppSpec) -> None:
        with self._lock:
            self._specs[spec.name] = spec
            self._apps[spec.name].device = "GPU" if spec.num_gpus else "CPU"
            self._apps[spec.name].file_bytes = sum(f.size for f in spec.checkpoint.files)

    def unregister_app(self, app: str) -> None:
        with self._lock:
            self._specs.pop(app, None)

    def apps(self) -> dict[str, AppSpec]:
        """What is deployed, by name."""
        with self._lock:
            return dict(sorted(self._specs.items()))

    def key_ids(self) -> list[str]:
        """The API keys there are, revoked ones too, the oldest first."""
        with self._lock:
            return self._keyring.ids

    def trim(self, *, older_than: timedelta, limit: int = 1000) -> int:
        """Forget the ids of jobs whose record expired, once they are `older_than`."""
        with self._lock:
            now = self._clock()
            until = now - older_than.total_seconds()
            old = [job_id for job_id, entry in self._index.items() if entry.created <= until][
                :limit
            ]
            gone = [job_id for job_id in old if self._alive(job_id, now) is None]
            for job_id in gone:
                del self._index[job_id]
            return len(gone)


def _flow(op: Submit) -> tuple[str, bool]:
    return op.client, op.place is not None


def _meta(record: _Record) -> str:
    """What the store keeps of how a job ended."""
    if record.status is JobStatus.CANCELLED:
        return "{}"
    if record.finish is not None:
        return record.finish.meta
    return json.dumps({"error": asdict(record.error) if record.error else None})


def _fields(record: _Record) -> dict[str, str]:
    """The hash of an ended job in the real store, as far as a webhook tells it."""
    submit, finish = record.submit, record.finish
    kept = finish if finish and record.status is not JobStatus.CANCELLED else None
    error = asdict(record.error) if record.error else None
    fields = {
        "id": submit.job_id, "app": submit.app, "model": submit.model, "status": record.status,
        "request": submit.params.to_json(), "created": str(record.created * 1000),
        "ended": str((record.ended or 0) * 1000), "attempt": str(record.attempt),
        "step": str(record.step), "client": submit.client, "version": str(record.version),
        "meta": json.dumps({
            "results": list(kept.result_keys) if kept else [],
            "seeds": list(kept.image_seeds) if kept else [],
            "metrics": asdict(kept.metrics) if kept and kept.metrics else None,
            "error": error,
        }),
    }  # fmt: skip
    if record.started is not None:
        fields["started"] = str(record.started * 1000)
    if record.is_cancelled:
        fields["cancel"] = "1"
    if submit.place is not None:
        fields["batch"], fields["line"] = submit.place.batch, str(submit.place.line)
    if record.usage is not None:
        used = record.usage.nonzero().items()
        fields["usage"] = json.dumps(
            {metric: amount for metric, amount in used if not metric.startswith("jobs_")}
        )
    return fields


def _holds(record: _Record, fence: int) -> bool:
    return record.status is JobStatus.RUNNING and record.attempt == fence


def _over_quota(op: Submit, has: Standing) -> tuple[Admission, int] | None:
    """The refusal of this submission and the amount that is the reason; None: it is within."""
    quotas, images = op.limits.client, has.images + op.params.num_images
    if quotas.jobs is not None and has.jobs + 1 > quotas.jobs:
        return Admission.CLIENT_FULL, has.jobs
    if quotas.queued is not None and has.queued + 1 > quotas.queued:
        return Admission.CLIENT_QUEUE_FULL, has.queued
    if quotas.images_per_day is not None and images > quotas.images_per_day:
        return Admission.IMAGES_SPENT, has.images
    seconds = quotas.gpu_seconds_per_day
    if seconds is not None and has.gpu_ms >= seconds * 1000:
        return Admission.GPU_SPENT, has.gpu_ms
    return None


def _worker_lost(attempts: int) -> str:
    return (
        f"The replica that ran this job was lost {attempts} times: the job itself may be what "
        "kills it. Submit it again with fewer steps or a smaller size."
    )
