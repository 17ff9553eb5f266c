"""The batches of the job store in memory: what the scripts on batches do, said once more."""

import json
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta

from sdserve.batch_operations import (
    UPLOAD_TTL,
    BatchAdmission,
    CloseLines,
    Closing,
    CreateBatch,
    Created,
    FailLine,
    ListBatches,
    OpenBatches,
    PackPart,
    PutPart,
    ReadPart,
    ViewBatch,
)
from sdserve.batches import (
    AppLines,
    Batch,
    BatchPlace,
    BatchState,
    Part,
    part_of,
    room_of,
    unpack_lines,
    unpack_records,
)
from sdserve.errors import BatchNotFoundError
from sdserve.jobs import JobStatus
from sdserve.testing.memory_outbox import MemoryOutbox


@dataclass(kw_only=True)
class _Batch:
    created: CreateBatch
    at: float
    apps: dict[str, AppLines]
    ended: float | None = None
    is_cancelled: bool = False
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("succeeded", "failed", "cancelled"), 0)
    )
    live: dict[str, str] = field(default_factory=dict[str, str])  # job id -> app
    records: dict[int, dict[int, str]] = field(default_factory=dict[int, dict[int, str]])
    packed: int = 0
    expires: float | None = None

    def end_lines(
        self, status: str, count: int, now: float, ttl: timedelta, outbox: MemoryOutbox
    ) -> None:
        self.counts[status] += count
        if sum(self.counts.values()) >= self.created.lines:
            self.ended = now
            self.expires = now + ttl.total_seconds()
            if self.created.webhook is not None:
                how = BatchState.CANCELLED if self.is_cancelled else BatchState.COMPLETED
                name, url = self.created.batch_id, self.created.webhook
                outbox.tell("batch", name, how, url, self._fields(), now)

    def _fields(self) -> dict[str, str]:
        """The hash of the batch in the real store, as far as a webhook tells it."""
        fields = {
            "id": self.created.batch_id, "client": self.created.client,
            "lines": str(self.created.lines), "created": str(self.at * 1000),
            "apps_of_parts": json.dumps([sorted(apps) for apps in self.created.apps_of_part]),
            "apps": json.dumps(list(self.apps)), "packed": str(self.packed),
            **{status: str(count) for status, count in self.counts.items()},
        }  # fmt: skip
        for app, lines in self.apps.items():
            fields |= {f"lines:{app}": str(lines.lines), f"fed:{app}": str(lines.fed)}
            fields[f"last:{app}"] = str(lines.last)
            if lines.rest is not None:
                error = asdict(lines.rest.error) if lines.rest.error else None
                fields[f"rest:{app}"] = f"{lines.rest.status} {json.dumps({'error': error})}"
        if self.ended is not None:
            fields["ended"] = str(self.ended * 1000)
        if self.is_cancelled:
            fields["cancel"] = "1"
        return fields


class InMemoryBatches:
    """Part of InMemoryJobStore, under its lock."""

    def __init__(self, outbox: MemoryOutbox) -> None:
        self._outbox = outbox
        self._batches: dict[str, _Batch] = {}
        self._parts: dict[tuple[str, int], tuple[bytes, float]] = {}  # data, end until created
        self._open: dict[str, None] = {}
        self._keys: dict[tuple[str, str], tuple[str, str, float]] = {}

    # --- what jobs do to their batch ---------------------------------------------------------

    def is_closed(self, place: BatchPlace, app: str, now: float) -> bool:
        batch = self._alive(place.batch, now)
        return batch is None or batch.apps[app].rest is not None

    def has_had_its_turn(self, place: BatchPlace, app: str) -> bool:
        return self._batches[place.batch].apps[app].last != place.previous

    def hand_over(self, place: BatchPlace, app: str, job_id: str) -> None:
        batch = self._batches[place.batch]
        lines = batch.apps[app]
        batch.apps[app] = replace(lines, last=place.line, fed=lines.fed + 1)
        batch.live[job_id] = app

    def end_line(
        self, place: BatchPlace, job_id: str, status: JobStatus, meta: str, now: float,
        ttl: timedelta,
    ) -> None:  # fmt: skip
        batch = self._alive(place.batch, now)
        if batch is None or batch.live.pop(job_id, None) is None:
            return
        batch.records.setdefault(part_of(place.line), {})[place.line] = f"{status} {meta}"
        batch.end_lines(status, 1, now, ttl, self._outbox)

    # --- the operations ----------------------------------------------------------------------

    def put_part(self, op: PutPart, now: float) -> bool:
        self._parts[op.batch_id, op.part] = (op.data, now + UPLOAD_TTL.total_seconds())
        return True

    def create(self, op: CreateBatch, now: float) -> Created:
        key = (op.client, op.idempotency_key or "")
        if op.idempotency_key is not None and key in self._keys and self._keys[key][2] > now:
            known, digest, _ = self._keys[key]
            same = digest == op.digest
            admission = BatchAdmission.DUPLICATE if same else BatchAdmission.CONFLICT
            if known != op.batch_id:
                self._drop_parts(op)
                return Created(admission=admission, batch_id=known)
        if self._alive(op.batch_id, now):
            return Created(admission=BatchAdmission.DUPLICATE, batch_id=op.batch_id)
        if refused := self._refuse(op, now):
            self._drop_parts(op)
            return refused
        self._make_room(op)
        for part in range(op.parts):
            self._parts[op.batch_id, part] = (self._parts[op.batch_id, part][0], float("inf"))
        apps = {app: AppLines(app=app, lines=lines) for app, lines in op.lines_of_app.items()}
        self._batches[op.batch_id] = _Batch(created=op, at=now, apps=apps)
        self._open[op.batch_id] = None
        if op.idempotency_key is not None:
            ends = now + op.idempotency_ttl.total_seconds()
            self._keys[key] = (op.batch_id, op.digest, ends)
        return Created(admission=BatchAdmission.CREATED, batch_id=op.batch_id)

    def _refuse(self, op: CreateBatch, now: float) -> Created | None:
        for batch_id in list(self._batches):
            self._alive(batch_id, now)
        unfinished = [batch.created for batch in self._batches.values() if batch.ended is None]
        mine = sum(self._room(created) for created in unfinished if created.client == op.client)
        taken = sum(self._room(created) for created in unfinished)
        room = self._room(op)
        waiting = self._outbox.waiting_of(op.client)
        if op.webhook is not None and waiting >= op.webhook_limit:
            refused = BatchAdmission.WEBHOOKS_FULL
            return Created(admission=refused, batch_id=op.batch_id, taken=waiting)
        if op.client and mine + room > op.client_room:
            return Created(admission=BatchAdmission.CLIENT_FULL, batch_id=op.batch_id, taken=mine)
        if taken + room > op.room_limit:
            return Created(admission=BatchAdmission.FULL, batch_id=op.batch_id, taken=taken)
        ends = [self._parts.get((op.batch_id, part), (b"", 0))[1] for part in range(op.parts)]
        if any(end <= now for end in ends):
            return Created(admission=BatchAdmission.LOST, batch_id=op.batch_id)
        return None

    def fail_line(self, op: FailLine, now: float) -> bool:
        batch = self._alive(op.place.batch, now)
        if batch is None or batch.apps[op.app].rest is not None:
            return False
        if self.has_had_its_turn(op.place, op.app):
            return False
        lines = batch.apps[op.app]
        batch.apps[op.app] = replace(lines, last=op.place.line, fed=lines.fed + 1)
        record = f"{op.state.status} {json.dumps({'error': asdict(op.failure)})}"
        batch.records.setdefault(part_of(op.place.line), {})[op.place.line] = record
        batch.end_lines(op.state.status, 1, now, op.job_ttl, self._outbox)
        return True

    def _room(self, op: CreateBatch) -> int:
        lost = (b"", 0.0)
        return sum(room_of(self._parts.get((op.batch_id, n), lost)[0]) for n in range(op.parts))

    def _drop_parts(self, op: CreateBatch) -> None:
        for part in range(op.parts):
            self._parts.pop((op.batch_id, part), None)

    def _make_room(self, op: CreateBatch) -> None:
        taken = sum(self._room(batch.created) for batch in self._batches.values())
        own_first = sorted(
            self._batches.items(), key=lambda item: item[1].created.client != op.client
        )
        for batch_id, batch in own_first:
            if taken + self._room(op) > op.room_limit and batch.ended is not None:
                taken -= self._room(batch.created)
                self._forget(batch_id)

    def close_lines(self, op: CloseLines, now: float) -> Closing:
        batch = self._alive(op.batch_id, now)
        if batch is None:
            return Closing.MISSING
        if batch.ended is not None:
            return Closing.ENDED
        batch.is_cancelled = batch.is_cancelled or op.failure is None
        count = 0
        for app, lines in batch.apps.items():
            if op.app in ("", app) and lines.rest is None:
                batch.apps[app] = replace(lines, rest=op.state)
                count += lines.lines - lines.fed
        if count:
            batch.end_lines(op.state.status, count, now, op.job_ttl, self._outbox)
        return Closing.CLOSED

    def view(self, op: ViewBatch, now: float) -> Batch:
        batch = self._alive(op.batch_id, now)
        if batch is None:
            raise BatchNotFoundError(op.batch_id)
        return Batch(
            id=op.batch_id,
            client=batch.created.client,
            lines=batch.created.lines,
            apps=tuple(batch.apps.values()),
            apps_of_part=tuple(batch.created.apps_of_part),
            created_at=datetime.fromtimestamp(batch.at, UTC),
            ended_at=None if batch.ended is None else datetime.fromtimestamp(batch.ended, UTC),
            cancel_requested=batch.is_cancelled,
            live=dict(batch.live),
            packed=batch.packed,
            **batch.counts,
        )

    def list_ids(self, op: ListBatches, now: float) -> list[str]:
        newest_first = list(reversed(self._batches))
        if op.after:
            known = op.after in newest_first
            newest_first = newest_first[newest_first.index(op.after) + 1 :] if known else []
        found = [
            batch_id
            for batch_id in newest_first
            if (batch := self._alive(batch_id, now))
            if op.client in (None, batch.created.client)
        ]
        return found[: op.limit]

    def open_ids(self, _op: OpenBatches, _now: float) -> list[str]:
        return list(self._open)

    def read_part(self, op: ReadPart, now: float, live: dict[str, tuple[int, JobStatus]]) -> Part:
        batch = self._alive(op.batch_id, now)
        if batch is None or not 0 <= op.part < batch.created.parts:
            raise BatchNotFoundError(op.batch_id)
        return Part(
            lines=unpack_lines(self._parts[op.batch_id, op.part][0]),
            records=dict(batch.records.get(op.part, {})),
            live=dict(live[job_id] for job_id in batch.live),
        )

    def pack_part(self, op: PackPart, now: float) -> bool:
        batch = self._alive(op.batch_id, now)
        if batch is None:
            self._open.pop(op.batch_id, None)
            return False
        if batch.packed != op.part or len(batch.records.get(op.part, {})) != op.results:
            return False
        if op.results:
            batch.records[op.part] = unpack_records(op.data)
        batch.packed += 1
        if batch.packed == batch.created.parts and batch.ended is not None:
            self._open.pop(op.batch_id, None)
        return True

    def _alive(self, batch_id: str, now: float) -> _Batch | None:
        batch = self._batches.get(batch_id)
        if batch and batch.expires is not None and batch.expires <= now:
            self._drop(batch_id)  # still among the open ones, if nobody has packed it
            return None
        return batch

    def _forget(self, batch_id: str) -> None:
        self._drop(batch_id)
        self._open.pop(batch_id, None)

    def _drop(self, batch_id: str) -> None:
        batch = self._batches.pop(batch_id)
        for part in range(batch.created.parts):
            del self._parts[batch_id, part]
