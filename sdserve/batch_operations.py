"""The operations on batches as typed values; what a line's job does to its batch is in Submit."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, ClassVar

from sdserve import keys
from sdserve.batches import (
    PART,
    ROOM_BYTES,
    AppLines,
    Batch,
    BatchPlace,
    LineState,
    LineStatus,
    Part,
    unpack_lines,
    unpack_records,
)
from sdserve.errors import BatchNotFoundError
from sdserve.jobs import JobFailure, JobStatus
from sdserve.operations import Argument, Operation
from sdserve.operations.wire import fields_of, time_of

UPLOAD_TTL = timedelta(minutes=5)  # of parts whose batch was never created: they vanish alone


class BatchAdmission(StrEnum):
    """What happened to an upload."""

    CREATED = "created"
    DUPLICATE = "duplicate"  # this key or id was accepted before: the same batch
    CONFLICT = "conflict"  # this key was used with another upload
    FULL = "full"  # refused: unfinished batches take all the room
    CLIENT_FULL = "client_full"  # refused: this client's do
    WEBHOOKS_FULL = "webhooks_full"  # refused: it has one, and this client's wait for delivery
    LOST = "lost"  # refused: a stored part has vanished, or never came


class Closing(StrEnum):
    """What became of a wish to hand over no more lines."""

    CLOSED = "closed"
    ENDED = "ended"  # every line had ended before
    MISSING = "missing"  # no such batch


@dataclass(frozen=True, kw_only=True)
class Created:
    """The answer to CreateBatch."""

    admission: BatchAdmission
    batch_id: str
    taken: int = 0  # of FULL and CLIENT_FULL the room, in lines; of WEBHOOKS_FULL the events


@dataclass(frozen=True, kw_only=True)
class PutPart(Operation[bool]):
    """Store a part of an upload, to become the batch's own by CreateBatch."""

    script: ClassVar[str] = "put_part"
    batch_id: str
    part: int
    data: bytes  # of pack_lines

    @property
    def keys(self) -> list[str]:
        return [_lines_key(self.batch_id, self.part)]

    @property
    def arguments(self) -> list[Argument]:
        return [self.data, int(UPLOAD_TTL.total_seconds())]

    def read(self, reply: Any) -> bool:
        return reply == 1


@dataclass(frozen=True, kw_only=True)
class CreateBatch(Operation[Created]):
    """Accept a batch, whose parts are stored, once."""

    script: ClassVar[str] = "create_batch"
    batch_id: str
    client: str
    lines: int
    lines_of_app: dict[str, int]
    apps_of_part: Sequence[frozenset[int]]  # places in `lines_of_app`
    digest: str  # of the upload as it came
    room_limit: int
    client_room: int
    webhook_limit: int  # undelivered events of the client
    webhook: str | None = None  # URL that is told of the batch's end
    idempotency_key: str | None = None
    idempotency_ttl: timedelta = timedelta(hours=24)

    @property
    def parts(self) -> int:
        return len(self.apps_of_part)

    @property
    def keys(self) -> list[str]:
        idempotency = ""
        if self.idempotency_key is not None:
            name = keys.hashed(self.client, self.idempotency_key)
            idempotency = f"{keys.IDEMPOTENCY}batches:{name}"
        parts = [_lines_key(self.batch_id, part) for part in range(self.parts)]
        return [
            keys.BATCH + self.batch_id, idempotency, keys.BATCHES, keys.OPEN_BATCHES, *parts,
        ]  # fmt: skip

    @property
    def arguments(self) -> list[Argument]:
        return [
            self.batch_id, self.client, self.lines, self.digest,
            int(self.idempotency_ttl.total_seconds()), PART, self.parts,
            json.dumps([sorted(apps) for apps in self.apps_of_part]), ROOM_BYTES, self.room_limit,
            self.client_room, self.webhook or "", json.dumps(list(self.lines_of_app)),
            self.webhook_limit, *self.lines_of_app.values(),
        ]  # fmt: skip

    def read(self, reply: Any) -> Created:
        return Created(
            admission=BatchAdmission(reply[0].decode()),
            batch_id=reply[1].decode(),
            taken=int(reply[2]),
        )


@dataclass(frozen=True, kw_only=True)
class CloseLines(Operation[Closing]):
    """End the lines that have no job yet, of one app or of all."""

    script: ClassVar[str] = "close_lines"
    batch_id: str
    job_ttl: timedelta
    app: str = ""  # "" is all
    failure: JobFailure | None = None  # None: the user has cancelled the batch

    @property
    def state(self) -> LineState:
        status = LineStatus.FAILED if self.failure else LineStatus.CANCELLED
        return LineState(status=status, error=self.failure)

    @property
    def keys(self) -> list[str]:
        return [keys.BATCH + self.batch_id]

    @property
    def arguments(self) -> list[Argument]:
        meta = json.dumps({"error": asdict(self.failure) if self.failure else None})
        status = self.state.status.value
        ttl = int(self.job_ttl.total_seconds())
        return [self.app, f"{status} {meta}", status, ttl, int(self.failure is None)]

    def read(self, reply: Any) -> Closing:
        return Closing(reply.decode())


@dataclass(frozen=True, kw_only=True)
class FailLine(Operation[bool]):
    """End an app's next line without a job, for it can never be one. False: its turn is over."""

    script: ClassVar[str] = "fail_line"
    app: str
    place: BatchPlace
    failure: JobFailure
    job_ttl: timedelta

    @property
    def state(self) -> LineState:
        return LineState(status=LineStatus.FAILED, error=self.failure)

    @property
    def keys(self) -> list[str]:
        return [keys.BATCH + self.place.batch]

    @property
    def arguments(self) -> list[Argument]:
        record = f"{self.state.status} {json.dumps({'error': asdict(self.failure)})}"
        ttl = int(self.job_ttl.total_seconds())
        return [self.app, self.place.line, self.place.previous, record, ttl]

    def read(self, reply: Any) -> bool:
        return reply == 1


@dataclass(frozen=True, kw_only=True)
class ViewBatch(Operation[Batch]):
    """A batch at one moment.

    Raises (in `read`):
        BatchNotFoundError.
    """

    script: ClassVar[str] = "view_batch"
    batch_id: str

    @property
    def keys(self) -> list[str]:
        return [keys.BATCH + self.batch_id, _live_key(self.batch_id)]

    @property
    def arguments(self) -> list[Argument]:
        return []

    def read(self, reply: Any) -> Batch:
        fields = fields_of(reply[0])
        if not fields:
            raise BatchNotFoundError(self.batch_id)
        return batch_of(fields, live=fields_of(reply[1]))


@dataclass(frozen=True, kw_only=True)
class ListBatches(Operation[list[str]]):
    """Ids of batches, the newest first."""

    script: ClassVar[str] = "list_batches"
    client: str | None  # None: of all
    after: str = ""  # the last id of the page before
    limit: int

    @property
    def keys(self) -> list[str]:
        return [keys.BATCHES]

    @property
    def arguments(self) -> list[Argument]:
        return [self.client or "", int(self.client is None), self.after, self.limit]

    def read(self, reply: Any) -> list[str]:
        return [batch_id.decode() for batch_id in reply]


@dataclass(frozen=True, kw_only=True)
class OpenBatches(Operation[list[str]]):
    """Ids of the batches that need feeding or packing, the oldest first."""

    script: ClassVar[str] = "open_batches"

    @property
    def keys(self) -> list[str]:
        return [keys.OPEN_BATCHES]

    @property
    def arguments(self) -> list[Argument]:
        return []

    def read(self, reply: Any) -> list[str]:
        return [batch_id.decode() for batch_id in reply]


@dataclass(frozen=True, kw_only=True)
class ReadPart(Operation[Part]):
    """A part's lines and what has become of them.

    Raises (in `read`):
        BatchNotFoundError.
    """

    script: ClassVar[str] = "read_part"
    batch_id: str
    part: int  # from 0

    @property
    def keys(self) -> list[str]:
        return [
            _lines_key(self.batch_id, self.part), _packed_key(self.batch_id, self.part),
            _results_key(self.batch_id, self.part), _live_key(self.batch_id),
        ]  # fmt: skip

    @property
    def arguments(self) -> list[Argument]:
        return [keys.JOB]

    def read(self, reply: Any) -> Part:
        lines, packed, results, live = reply
        if lines is None:
            raise BatchNotFoundError(self.batch_id)
        records = unpack_records(packed) if packed else {}
        records |= {int(number): text for number, text in fields_of(results).items()}
        return Part(
            lines=unpack_lines(lines),
            records=records,
            live={int(number): JobStatus(status) for number, status in fields_of(live).items()},
        )


@dataclass(frozen=True, kw_only=True)
class PackPart(Operation[bool]):
    """Keep the results of a settled part in little room. False: that is done already."""

    script: ClassVar[str] = "pack_part"
    batch_id: str
    part: int  # from 0; the parts are packed in their order
    results: int  # how many are packed
    data: bytes  # of pack_records

    @property
    def keys(self) -> list[str]:
        return [
            keys.BATCH + self.batch_id, _results_key(self.batch_id, self.part),
            _packed_key(self.batch_id, self.part), keys.OPEN_BATCHES,
        ]  # fmt: skip

    @property
    def arguments(self) -> list[Argument]:
        return [self.batch_id, self.part, self.results, self.data]

    def read(self, reply: Any) -> bool:
        return reply == 1


def batch_of(fields: Mapping[str, str], live: Mapping[str, str]) -> Batch:
    """A batch from its hash and its jobs that have not ended (id -> app)."""
    apps: list[str] = json.loads(fields["apps"])
    return Batch(
        id=fields["id"],
        client=fields["client"],
        lines=int(fields["lines"]),
        apps=tuple(_lines_of(app, fields) for app in apps),
        apps_of_part=tuple(map(frozenset, json.loads(fields["apps_of_parts"]))),
        created_at=time_of(fields["created"]),
        ended_at=time_of(fields["ended"]) if "ended" in fields else None,
        cancel_requested="cancel" in fields,
        succeeded=int(fields.get("succeeded", 0)),
        failed=int(fields.get("failed", 0)),
        cancelled=int(fields.get("cancelled", 0)),
        live=live,
        packed=int(fields.get("packed", 0)),
    )


def _lines_of(app: str, fields: Mapping[str, str]) -> AppLines:
    rest = fields.get(f"rest:{app}")
    return AppLines(
        app=app,
        lines=int(fields[f"lines:{app}"]),
        fed=int(fields.get(f"fed:{app}", 0)),
        last=int(fields.get(f"last:{app}", 0)),
        rest=LineState.read(rest) if rest else None,
    )


def _lines_key(batch_id: str, part: int) -> str:
    return f"{keys.BATCH}{batch_id}:in:{part}"


def _results_key(batch_id: str, part: int) -> str:
    return f"{keys.BATCH}{batch_id}:out:{part}"


def _packed_key(batch_id: str, part: int) -> str:
    return f"{keys.BATCH}{batch_id}:res:{part}"


def _live_key(batch_id: str) -> str:
    return f"{keys.BATCH}{batch_id}:live"
