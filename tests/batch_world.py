"""Batches in tests: a batch made of words, and short words for what is done to one."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sdserve.batch_operations import (
    CloseLines,
    Closing,
    CreateBatch,
    Created,
    OpenBatches,
    PackPart,
    PutPart,
    ReadPart,
    ViewBatch,
)
from sdserve.batches import (
    Batch,
    BatchLine,
    BatchPlace,
    LineState,
    dump_lines,
    line_job_id,
    pack_lines,
    pack_records,
    parts_of,
)
from sdserve.jobs import JobFailure, new_job_id
from sdserve.operations import Operation, Submit, Submitted
from sdserve.store import RedisJobStore
from sdserve.testing import InMemoryJobStore
from tests.values import APP, JOB_TTL, params, submit

LINE_TTL = timedelta(minutes=30)
ROOM = 10_000


def lines(count: int, *apps: str) -> list[BatchLine]:
    """Lines that go round the apps."""
    names = apps or (APP,)
    return [
        BatchLine(
            number=n, app=names[(n - 1) % len(names)], custom_id=f"line {n}", params=params(seed=n)
        )
        for n in range(1, count + 1)
    ]


def create(accepted: list[BatchLine], **changes: Any) -> CreateBatch:
    apps = list(dict.fromkeys(line.app for line in accepted))
    fields: dict[str, Any] = {
        "batch_id": new_job_id(),
        "client": "",
        "lines": len(accepted),
        "lines_of_app": {app: sum(line.app == app for line in accepted) for app in apps},
        "apps_of_part": [
            frozenset(apps.index(line.app) for line in part) for part in parts_of(accepted)
        ],
        "digest": "digest",
        "room_limit": ROOM,
        "client_room": ROOM,
        "webhook_limit": ROOM,
    }
    return CreateBatch(**{**fields, **changes})


@dataclass(frozen=True)
class Batches:
    """A job store, and short words for what is done to a batch in it."""

    store: RedisJobStore | InMemoryJobStore

    def run(self, operation: Operation[Any]) -> Any:
        return self.store.run(operation)

    def upload(self, accepted: list[BatchLine], **changes: Any) -> Created:
        operation = create(accepted, **changes)
        for number, part in enumerate(parts_of(accepted)):
            self.run(
                PutPart(batch_id=operation.batch_id, part=number, data=pack_lines(dump_lines(part)))
            )
        return self.run(operation)

    def make(self, count: int, *apps: str, **changes: Any) -> str:
        """The id of a new batch."""
        return self.upload(lines(count, *apps), **changes).batch_id

    def view(self, batch_id: str) -> Batch:
        return self.run(ViewBatch(batch_id=batch_id))

    def submission(self, batch_id: str, line: int, previous: int, **changes: Any) -> Submit:
        place = BatchPlace(batch=batch_id, line=line, previous=previous)
        job_id = line_job_id(batch_id, line)
        fields = {"place": place, "job_id": job_id, "line_ttl": LINE_TTL}
        return submit(**{**fields, **changes})

    def feed(
        self, batch_id: str, line: int, previous: int | None = None, **changes: Any
    ) -> Submitted:
        before = line - 1 if previous is None else previous
        return self.run(self.submission(batch_id, line, before, **changes))

    def close(self, batch_id: str, app: str = "", failure: JobFailure | None = None) -> Closing:
        return self.run(CloseLines(batch_id=batch_id, app=app, failure=failure, job_ttl=JOB_TTL))

    def states(self, batch_id: str) -> list[LineState]:
        """Where each line stands."""
        batch = self.view(batch_id)
        parts = [self.run(ReadPart(batch_id=batch_id, part=n)) for n in range(batch.parts)]
        return [part.state(batch, line) for part in parts for line in part.lines]

    def words(self, batch_id: str) -> list[str]:
        return [state.status.value for state in self.states(batch_id)]

    def pack(self, batch_id: str, part: int) -> bool:
        records = self.run(ReadPart(batch_id=batch_id, part=part)).records
        return self.pack_these(batch_id, part, records)

    def pack_these(self, batch_id: str, part: int, records: Mapping[int, str]) -> bool:
        data = pack_records(records)
        return self.run(PackPart(batch_id=batch_id, part=part, results=len(records), data=data))

    @property
    def open(self) -> list[str]:
        return self.run(OpenBatches())
