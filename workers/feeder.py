"""The feeder hands the lines of batches to their apps' queues. Any number may run at once.

The store sees to it that a line has its turn once and none is skipped. So a feeder may die at any
point: the next one looks and goes on.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from sdserve.apps import AppSpec
from sdserve.batch_operations import (
    CloseLines,
    FailLine,
    OpenBatches,
    PackPart,
    ReadPart,
    ViewBatch,
)
from sdserve.batches import (
    PART,
    AppLines,
    Batch,
    BatchLine,
    BatchPlace,
    line_job_id,
    pack_records,
    part_of,
)
from sdserve.errors import (
    AppNotFoundError,
    BatchNotFoundError,
    ImagesSpentError,
    StoreFullError,
)
from sdserve.jobs import JobFailure
from sdserve.key_operations import ViewKey
from sdserve.limits import Limits
from sdserve.operations import Admission, Cancel, Submit
from sdserve.store import JobStore

log = logging.getLogger(__name__)

# All batches together may fill half of an app's queue: the rest is for those who wait for theirs.
QUEUE_SHARE = 2


class Feeder:
    """Feeds all open batches, a round at a time."""

    def __init__(
        self,
        store: JobStore,
        *,
        limits: Limits,
        job_ttl: timedelta,
        line_ttl: timedelta,
    ) -> None:
        """Prepare.

        Args:
            store: the job store.
            limits: what a submission must not exceed.
            job_ttl: how long an ended batch is kept.
            line_ttl: how long the ended job of a line is, besides what its batch keeps of it.
        """
        self._store = store
        self._limits = limits
        self._job_ttl = job_ttl
        self._line_ttl = line_ttl
        # The part that an app's next line is in: it never changes, and serves many rounds.
        self._parts: dict[tuple[str, str], tuple[int, tuple[BatchLine, ...]]] = {}

    def round(self) -> bool:
        """Hand over what there is room for. False: no batch needs feeding any more."""
        batches = list[Batch]()
        for batch_id in self._store.run(OpenBatches()):
            try:
                batches.append(self._store.run(ViewBatch(batch_id=batch_id)))
            except BatchNotFoundError:  # it expired before its results were packed
                self._store.run(PackPart(batch_id=batch_id, part=0, results=0, data=b""))
        specs = self._store.apps()
        takers = Counter(lines.app for batch in batches for lines in batch.apps if lines.is_open)
        for batch in batches:
            try:
                self._tend(batch, specs, takers)
            except BatchNotFoundError:
                log.warning("batch %s is gone", batch.id)
        self._parts = {
            (batch_id, app): part
            for (batch_id, app), part in self._parts.items()
            if any(batch.id == batch_id for batch in batches)
        }
        return bool(batches)

    def _tend(self, batch: Batch, specs: Mapping[str, AppSpec], takers: Mapping[str, int]) -> None:
        if batch.cancel_requested:
            # Whoever cancelled it does this too, if he lived.
            for job_id, app in batch.live.items():
                self._store.run(Cancel(app=app, job_id=job_id, job_ttl=self._job_ttl))
        for lines in batch.apps:
            if lines.is_open:
                self._feed(batch, lines, specs, takers[lines.app])
        self._pack(batch)

    def _feed(
        self, batch: Batch, lines: AppLines, specs: Mapping[str, AppSpec], takers: int
    ) -> None:
        spec = specs.get(lines.app)
        if spec is None:
            failure = JobFailure(
                code="app_gone", message=str(AppNotFoundError(lines.app, list(specs)))
            )
            self._close(batch, lines.app, failure)
            return
        share = max(1, spec.queue_limit // QUEUE_SHARE)
        room = max(1, share // takers) - batch.live_of(lines.app)
        last, limits = lines.last, self._limits_of(batch.client)
        for _ in range(min(room, lines.lines - lines.fed)):
            line = self._line_after(batch, lines.app, last)
            place = BatchPlace(batch=batch.id, line=line.number, previous=last)
            if failure := _never(line, limits.client.images_per_day if batch.client else None):
                if not self._store.run(
                    FailLine(app=line.app, place=place, failure=failure, job_ttl=self._job_ttl)
                ):
                    return  # another feeder was here
                last = line.number
                continue
            submit = Submit(
                job_id=line_job_id(batch.id, line.number),
                app=line.app,
                model=spec.checkpoint.name,
                params=line.params,
                queue_limit=share,
                digest="",  # of no request: its id alone makes it one job
                client=batch.client,
                limits=limits,
                priority=line.priority,
                webhook=line.webhook,
                place=place,
                line_ttl=self._line_ttl,
            )
            try:
                submitted = self._store.run(submit)
            except StoreFullError:
                return  # packing makes room
            if submitted.admission is Admission.BROKEN:
                reason = submitted.reason or "its checkpoint cannot be loaded"
                self._close(batch, line.app, JobFailure(code="app_broken", message=reason))
            if submitted.admission not in (Admission.RUN_NOW, Admission.QUEUED):
                return  # no room or quota now; or another feeder was here
            last = line.number

    def _limits_of(self, client: str) -> Limits:
        """What this client may have now, by its API key while that lives."""
        key = self._store.run(ViewKey(key_id=client)).key if client else None
        quotas = key.quotas.over(self._limits.client) if key else self._limits.client
        return replace(self._limits, client=quotas)

    def _line_after(self, batch: Batch, app: str, last: int) -> BatchLine:
        """The app's line after `last`; there is one."""
        place = next(n for n, lines in enumerate(batch.apps) if lines.app == app)
        known, lines = self._parts.get((batch.id, app), (-1, ()))
        part = part_of(last + 1)
        while True:
            if place in batch.apps_of_part[part]:
                if part != known:
                    lines = self._store.run(ReadPart(batch_id=batch.id, part=part)).lines
                    known = part
                    self._parts[batch.id, app] = part, lines
                for line in lines:
                    if line.app == app and line.number > last:
                        return line
            part += 1

    def _close(self, batch: Batch, app: str, failure: JobFailure) -> None:
        log.warning("batch %s: no more lines for %s: %s", batch.id, app, failure.message)
        self._store.run(
            CloseLines(batch_id=batch.id, app=app, failure=failure, job_ttl=self._job_ttl)
        )

    def _pack(self, batch: Batch) -> None:
        """Pack the results of the next parts that are settled."""
        for part in range(batch.packed, batch.parts):
            is_ahead = any(
                lines.is_open and place in batch.apps_of_part[part] and part_of(lines.last) <= part
                for place, lines in enumerate(batch.apps)
            )
            # Lines of it may wait or run yet: not worth a look. (All before it have ended.)
            if is_ahead or batch.ended < min(batch.lines, (part + 1) * PART):
                return
            seen = self._store.run(ReadPart(batch_id=batch.id, part=part))
            if not seen.is_settled(batch):
                return
            records = seen.records
            data = pack_records(records)
            pack = PackPart(batch_id=batch.id, part=part, results=len(records), data=data)
            if not self._store.run(pack):
                return


def _never(line: BatchLine, images_per_day: int | None) -> JobFailure | None:
    """Why this line can never become a job, on no day; None: it can."""
    asked = line.params.num_images
    if images_per_day is None or asked <= images_per_day:
        return None
    message = (
        f"The line asks for {asked} images, its API key may have {images_per_day} a day: ask for "
        "fewer in a line, or have the quota raised."
    )
    return JobFailure(code=ImagesSpentError.code, message=message)
