"""A run of a batch: an upload handed to the server, followed to its end, and its screen."""

import sys
import time
from itertools import takewhile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from deploy_scripts.batch_folder import BatchFolder, Record, Task, Upload
from deploy_scripts.progress import describe
from deploy_scripts.prompt_file import BadLinesError
from sdserve.batches import LineStatus
from sdserve.client import ApiError, BatchLineView, JobView, SdClient
from sdserve.jobs import JobFailure, JobStatus

_WAIT = 5.0  # seconds of one long poll of a job; its end answers it early
_LOOK = 1.0  # seconds between two looks while no line is a job
_MOST_AT_ONCE = 100  # ended lines of one look
_GONE = frozenset({404, 410})
_REFUSED = frozenset({413, 422})  # what is in the upload is at fault
_EXPIRED = "images_expired"


class Screen:
    """What the user sees of a run: a bar on a terminal, one line per event in a log."""

    def __init__(self) -> None:
        self._last_wait = ""
        self._total = self._done = 0
        self._bar = tqdm(total=0, disable=True)

    def begin(self, total: int, done: int) -> None:
        """Show an upload of so many lines, of which some have ended before."""
        self.close()
        self._bar = tqdm(
            total=total,
            initial=done,
            unit="prompt",
            file=sys.stdout,
            disable=not sys.stdout.isatty(),
        )
        self._total, self._done = total, done

    def close(self) -> None:
        self._bar.close()

    def finished(self, record: Record) -> None:
        self._done += 1
        self._last_wait = ""
        self._bar.update()
        if self._bar.disable or not record.is_success:
            self.say(f"[{self._done}/{self._total}] {_sentence(record)}")

    def working(self, words: str) -> None:
        """Show what some job does right now."""
        self._bar.set_postfix_str(words)

    def waiting(self, why: str) -> None:
        """Say once per outage why nothing moves."""
        if why != self._last_wait:
            self._last_wait = why
            self.say(f"Waiting: {why}")

    def say(self, line: str) -> None:
        self._bar.write(line, sys.stdout)
        sys.stdout.flush()


class BatchRun:
    """Uploads to one server, one after the other."""

    def __init__(self, client: SdClient, folder: BatchFolder, file: Path, screen: Screen) -> None:
        """Prepare the run.

        Args:
            client: the server.
            folder: where images and records go.
            file: of the prompts, for messages.
            screen: shows it.
        """
        self._client = client
        self._folder = folder
        self._file = file
        self._screen = screen
        self.batch_id: str | None = None  # of the batch that goes on at the server
        self.failed = set[tuple[int, str]]()  # (number, digest) of prompts that were not drawn

    def run(self, upload: Upload) -> None:
        """Hand it in, unless the server has it, and keep what becomes of each line.

        Raises:
            BadLinesError: the server refuses the whole upload for lines of it.
            ClientError: the server went away, or refuses; a picture cannot be saved.
            BatchFolderError: results.jsonl cannot be written.
        """
        if upload.batch_id is None:
            upload = self._hand_in(upload)
        self.batch_id = batch_id = upload.batch_id
        assert batch_id is not None  # noqa: S101 (it was handed in)
        unended = {
            number: task
            for number, task in enumerate(upload.tasks, start=1)
            if not self._folder.is_recorded(task)
        }
        self._screen.begin(len(upload.tasks), len(upload.tasks) - len(unended))
        while unended:
            try:
                ended, live = self._look(batch_id, unended)
            except ApiError as error:
                if error.status not in _GONE:
                    raise
                self._screen.say(f"{error} What it has not told is to be drawn again.")
                break
            for line in ended:
                self._keep(unended.pop(line.line), line)
            if not ended:
                self._wait(live, unended)
        self._folder.end(upload)
        self.batch_id = None

    def _hand_in(self, upload: Upload) -> Upload:
        try:
            batch = self._client.create_batch(upload.data, idempotency_key=upload.key)
        except ApiError as error:
            if error.status not in _REFUSED:
                raise
            self._folder.end(upload)
            faults = [(fault.line, f"{fault.field}: {fault.message}") for fault in error.faults]
            problems = [(upload.tasks[line - 1].prompt.line, why) for line, why in faults if line]
            raise (BadLinesError(self._file, problems) if problems else error) from error
        return self._folder.accepted(upload, batch.id)

    def _look(
        self, batch_id: str, unended: dict[int, Task]
    ) -> tuple[list[BatchLineView], BatchLineView | None]:
        """Lines that have ended, not too many; and the first of those that are jobs."""
        ended, live = list[BatchLineView](), None
        lines = self._client.batch_results(batch_id, after=min(unended) - 1)
        # No line after one that waits is a job: lines of an app have their turns in order.
        for line in takewhile(lambda line: line.status is not LineStatus.WAITING, lines):
            if line.line not in unended:
                continue
            if line.status in (LineStatus.QUEUED, LineStatus.RUNNING):
                live = live or line
            else:
                ended.append(line)
                if len(ended) == _MOST_AT_ONCE:
                    break
        return ended, live

    def _wait(self, live: BatchLineView | None, unended: dict[int, Task]) -> None:
        """Wait for the end of a line, but not long: others may end before it."""
        if live is None or live.job_id is None:
            self._screen.working("waiting for room in the queue")
            time.sleep(_LOOK)
            return
        view = self._client.job(live.job_id, wait=_WAIT)
        self._screen.working(describe(view))
        if view.status is JobStatus.SUCCEEDED:  # with its pictures: no need to ask for them
            self._keep_pictures(unended.pop(live.line), view)

    def _keep(self, task: Task, line: BatchLineView) -> None:
        status, error = JobStatus(line.status.value), line.error
        if status is JobStatus.SUCCEEDED:
            try:
                self._keep_pictures(task, self._client.job(str(line.job_id)))
            except ApiError as gone:
                if gone.status not in _GONE:
                    raise
                status, error = JobStatus.FAILED, JobFailure(code=_EXPIRED, message=str(gone))
            else:
                return
        else:
            self.failed.add((task.prompt.number, task.digest))
        self._record(
            task,
            status,
            job_id=line.job_id,
            compute_metrics=line.compute_metrics,
            error=error or JobFailure(code=status.value, message=f"The job was {status}."),
        )

    def _keep_pictures(self, task: Task, view: JobView) -> None:
        files = self._folder.save(task, self._client.pictures(view))
        self._record(
            task,
            view.status,
            job_id=view.id,
            files=files,
            seed=view.parameters.get("seed"),
            seconds=view.seconds,
            compute_metrics=view.compute_metrics,
        )

    def _record(self, task: Task, status: JobStatus, **outcome: Any) -> None:
        record = Record(
            number=task.prompt.number,
            line=task.prompt.line,
            prompt=task.prompt.text,
            status=status,
            attempt=task.attempt,
            digest=task.digest,
            **outcome,
        )
        self._folder.append(record)
        self._screen.finished(record)


def _sentence(record: Record) -> str:
    if record.is_success:
        took = f" in {record.seconds:.1f} s" if record.seconds is not None else ""
        return f"line {record.line}: {', '.join(record.files)}{took}"
    reason = record.error.message if record.error else record.status.value
    return f"line {record.line}: {record.status.value}: {reason}"
