"""A run of a batch: its tasks through one app, at most so many at a time, and its screen."""

import contextlib
import queue
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from deploy_scripts.batch_folder import BatchFolder, Record, Task
from deploy_scripts.progress import describe
from sdserve.client import ApiError, JobView, SdClient
from sdserve.jobs import JobFailure, JobStatus

_WAIT = 5.0  # seconds of one long poll; the end of the job answers it early
_PROMPT_FAULTS = frozenset({400, 413, 422, 500})  # this prompt is refused; the next may pass
_GONE = frozenset({404, 410})  # the server has lost or forgotten the job
_MOST_LOSSES = 3  # jobs of one prompt lost by the server before the prompt counts as failed


class StoppedError(Exception):
    """The run is over; the worker thread lets go of its job, which stays on the server."""


class _JobGoneError(ApiError):
    """404 or 410 for a job that this run was given."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.status, error.title, error.detail)


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """How a worker's task ended."""

    task: Task
    record: Record


class Screen:
    """What the user sees of a run: a bar on a terminal, one line per event in a log."""

    def __init__(self, total: int, done: int) -> None:
        """Start showing.

        Args:
            total: prompts of the batch.
            done: those that have succeeded before this run.
        """
        self.total = total
        self.done = done
        self.failed = 0
        self._last_wait = ""
        self._bar = tqdm(
            total=total,
            initial=done,
            unit="prompt",
            file=sys.stdout,
            disable=not sys.stdout.isatty(),
        )

    def close(self) -> None:
        self._bar.close()

    def finished(self, record: Record) -> None:
        self.done += record.is_success
        self.failed += not record.is_success
        self._last_wait = ""
        self._bar.update()
        if self._bar.disable or not record.is_success:
            self._say(f"[{self.done + self.failed}/{self.total}] {_sentence(record)}")

    def working(self, words: str) -> None:
        """Show what some job does right now."""
        self._bar.set_postfix_str(words)

    def waiting(self, why: str) -> None:
        """Say once per outage why nothing moves."""
        if why != self._last_wait:
            self._last_wait = why
            self._say(f"Waiting: {why}")

    def _say(self, line: str) -> None:
        self._bar.write(line, sys.stdout)
        sys.stdout.flush()


class BatchRun:
    """Tasks through one app, at most `in_flight` at a time."""

    def __init__(
        self,
        *,
        client: SdClient,
        folder: BatchFolder,
        app: str,
        stop: threading.Event,
        screen: Screen,
    ) -> None:
        """Prepare the run.

        Args:
            client: the server.
            folder: where images and records go.
            app: name of the app.
            stop: once set, workers give up and submit nothing more.
            screen: shows it.
        """
        self._client = client
        self._folder = folder
        self._app = app
        self._stop = stop
        self._screen = screen
        self._tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[_Outcome | Exception] = queue.SimpleQueue()

    def run(self, tasks: Sequence[Task], in_flight: int) -> None:
        """Do all tasks. A record is durable before it is shown.

        Raises:
            ClientError: the server went away, or refuses everything; a picture cannot be saved.
            BatchFolderError: results.jsonl cannot be written.
        """
        for task in tasks:
            self._tasks.put(task)
        for _ in range(min(in_flight, len(tasks))):
            # Daemons: after Ctrl-C nobody waits for a thread that sits in a long poll. Its job
            # stays on the server, and images appear whole or not at all.
            threading.Thread(target=self._work, daemon=True).start()
        try:
            for _ in tasks:
                self._keep(self._outcomes.get())
        finally:
            self._stop.set()
            # What ended in the same moment is paid for: keep it.
            with contextlib.suppress(queue.Empty):
                while True:
                    late = self._outcomes.get_nowait()
                    if isinstance(late, _Outcome):
                        self._keep(late)

    def _keep(self, outcome: _Outcome | Exception) -> None:
        if isinstance(outcome, Exception):
            raise outcome
        self._folder.append(outcome.record, outcome.task.replaces)
        self._screen.finished(outcome.record)

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                return
            try:
                self._outcomes.put(_Outcome(task=task, record=self._perform(task)))
            except StoppedError:
                return
            except Exception as error:  # noqa: BLE001 - raised again in the main thread
                self._outcomes.put(error)
                return

    def _perform(self, task: Task) -> Record:
        attempt, lost = task.attempt, None
        for losses in range(_MOST_LOSSES + 1):
            attempt = task.attempt + losses
            try:
                return self._try(task, attempt)
            except _JobGoneError as error:
                lost = error  # the key still names the lost job: only a fresh one makes a new job
        failure = JobFailure(code="job_lost", message=str(lost))
        return self._failed(task, attempt, JobStatus.FAILED, failure)

    def _try(self, task: Task, attempt: int) -> Record:
        view: JobView | None = None
        try:
            view = self._client.submit(
                self._app,
                task.prompt.body,
                idempotency_key=self._folder.key(task, attempt),
                # The wait is ours: a held request would die with the connection.
                prefer="respond-async",
            )
        except ApiError as error:
            if error.job_id is None and error.status not in _PROMPT_FAULTS:
                raise
            if error.job_id is None:
                failure = JobFailure(code=f"http_{error.status}", message=str(error))
                return self._failed(task, attempt, JobStatus.FAILED, failure)
            # The key's job is of an earlier run, and has failed or was cancelled since.
            job_id = error.job_id
        else:
            job_id = view.id
            self._screen.working(describe(view))
        try:
            if view is None or not view.status.is_final:
                view = self._wait(job_id)
            if view.status is not JobStatus.SUCCEEDED:
                return self._failed(task, attempt, view.status, view.error, view)
            pictures = self._client.pictures(view)
        except ApiError as error:
            if error.status in _GONE:
                raise _JobGoneError(error) from error
            raise
        if self._stop.is_set():
            raise StoppedError
        return Record(
            number=task.prompt.number,
            line=task.prompt.line,
            prompt=task.prompt.text,
            status=view.status,
            job_id=view.id,
            files=self._folder.save(task, pictures),
            seed=view.parameters.get("seed"),
            seconds=view.seconds,
            compute_metrics=view.compute_metrics,
            attempt=attempt,
            digest=task.digest,
        )

    def _wait(self, job_id: str) -> JobView:
        for view in self._client.watch(job_id, wait=_WAIT):
            if view.status.is_final:
                return view
            if self._stop.is_set():
                raise StoppedError
            self._screen.working(describe(view))
        raise AssertionError("watch ends with a final view")

    def _failed(
        self,
        task: Task,
        attempt: int,
        status: JobStatus,
        error: JobFailure | None,
        view: JobView | None = None,
    ) -> Record:
        return Record(
            number=task.prompt.number,
            line=task.prompt.line,
            prompt=task.prompt.text,
            status=status,
            job_id=view.id if view else None,
            seconds=view.seconds if view else None,
            compute_metrics=view.compute_metrics if view else None,
            error=error or JobFailure(code=status.value, message=f"The job was {status.value}."),
            attempt=attempt,
            digest=task.digest,
        )


def _sentence(record: Record) -> str:
    if record.is_success:
        took = f" in {record.seconds:.1f} s" if record.seconds is not None else ""
        return f"line {record.line}: {', '.join(record.files)}{took}"
    reason = record.error.message if record.error else record.status.value
    return f"line {record.line}: {record.status.value}: {reason}"
