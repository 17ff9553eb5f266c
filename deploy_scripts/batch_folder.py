"""The folder of a batch: its images, its results, its upload. All that a resumed run needs to know.

results.jsonl       one Record a line, appended as prompts end; the last one of a prompt counts
upload-KEY.jsonl    what is being handed in, under that idempotency key
batch-ID.jsonl      the same once the server has it as that batch, until every line is in results
0001.png ...        the images, by the prompt's number
.lock               held while a run works here

An upload is a file before it is sent, so whoever dies sends the same bytes under the same key.
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Self, TextIO

from pydantic import TypeAdapter, ValidationError

from deploy_scripts.prompt_file import Prompt
from sdserve.client import Picture
from sdserve.client.files import save_pictures, write_whole
from sdserve.errors import SdServeError
from sdserve.jobs import JobFailure, JobStatus
from sdserve.limits import BatchLimits

_LIMITS = BatchLimits()  # a server's, unless it is told otherwise


class BatchFolderError(SdServeError):
    """The folder cannot be used for this batch."""

    code = "invalid_batch_folder"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of results.jsonl: how one try of one prompt ended."""

    number: int  # place among the prompts, from 1
    line: int  # line of the prompt file
    prompt: str
    status: JobStatus  # final
    job_id: str | None = None  # None: it never became a job
    files: tuple[str, ...] = ()  # names in the folder
    seed: int | None = None  # of the first image
    seconds: float | None = None  # acceptance to end, by the server's clock; of successes
    compute_metrics: dict[str, Any] | None = None
    error: JobFailure | None = None
    attempt: int = 1
    digest: str = ""  # of app and body: a changed prompt is new work

    @property
    def is_success(self) -> bool:
        return self.status is JobStatus.SUCCEEDED


@dataclass(frozen=True, kw_only=True)
class Task:
    """One try of one prompt: a line of an upload."""

    app: str
    prompt: Prompt
    attempt: int  # 1, or one more than the last try of this place in the file

    @property
    def digest(self) -> str:
        canonical = json.dumps([self.app, self.prompt.body], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_line(self) -> bytes:
        name = f"{self.prompt.number:04d} line {self.prompt.line} try {self.attempt}"
        return json.dumps({"custom_id": name, "app": self.app, **self.prompt.body}).encode() + b"\n"

    @classmethod
    def of_line(cls, text: bytes) -> Self:
        """What `to_line` made.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: another's line.
        """
        body = json.loads(text)
        number, _, line, _, attempt = body.pop("custom_id").split()
        app = body.pop("app")
        prompt = Prompt(number=int(number), line=int(line), body=body)
        return cls(app=app, prompt=prompt, attempt=int(attempt))


@dataclass(frozen=True, kw_only=True)
class Upload:
    """Tasks that are, or are about to be, one batch at the server."""

    file: Path  # its name is the state
    data: bytes  # of the file: JSON Lines
    tasks: Sequence[Task]  # by line

    @property
    def key(self) -> str:
        """The idempotency key of an upload whose batch is not known yet."""
        return self.file.stem

    @property
    def batch_id(self) -> str | None:
        kind, _, name = self.file.stem.partition("-")
        return name if kind == "batch" else None


class BatchFolder:
    """An open folder. One process at a time."""

    def __init__(self, path: Path, records: list[Record], lock: TextIO) -> None:
        self.path = path
        self.results = path / "results.jsonl"
        self._lock = lock
        self._last = {record.number: record for record in records}

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the folder, or make a new one.

        Raises:
            BatchFolderError: not a folder of ours, damaged, or in use by another run.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / ".lock").open("w")
        except OSError as error:
            raise BatchFolderError(path, f"{error.strerror or error}.") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for cut in path.glob(".*.part"):  # of a run that was killed
                cut.unlink()
            return cls(path, _records(path), lock)
        except BlockingIOError as error:
            lock.close()
            raise BatchFolderError(path, "another submit_batch is working here.") from error
        except OSError as error:
            lock.close()
            raise BatchFolderError(path, f"{error.strerror or error}.") from error
        except BaseException:
            lock.close()
            raise

    def close(self) -> None:
        self._lock.close()

    def left(self, app: str, prompts: Iterable[Prompt]) -> list[Task]:
        """What has to be drawn: prompts whose images are not here."""
        tasks = list[Task]()
        for prompt in prompts:
            last = self._last.get(prompt.number)
            attempt = last.attempt + 1 if last else 1
            task = Task(app=app, prompt=prompt, attempt=attempt)
            is_same = last is not None and last.digest == task.digest
            if not (last and is_same and last.is_success and self._has(last.files)):
                tasks.append(task)
        return tasks

    def is_changed(self, task: Task) -> bool:
        """Whether there is a result of another prompt at this place."""
        last = self._last.get(task.prompt.number)
        return last is not None and last.digest != task.digest

    def is_recorded(self, task: Task) -> bool:
        """Whether it is known how this try ended."""
        last = self._last.get(task.prompt.number)
        return last is not None and last.attempt >= task.attempt

    def records_beyond(self, count: int) -> int:
        """How many results belong to prompts that the file no longer has."""
        return sum(number > count for number in self._last)

    def pending(self) -> Upload | None:
        """The upload that an earlier run did not see to its end.

        Raises:
            BatchFolderError: somebody has changed its file.
        """
        for file in sorted(self.path.glob("*.jsonl")):
            if re.fullmatch(r"(upload|batch)-[0-9a-f-]+", file.stem):
                data = file.read_bytes()
                try:
                    tasks = [Task.of_line(line) for line in data.splitlines()]
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise BatchFolderError(file, "is damaged: choose a new --out.") from error
                return Upload(file=file, data=data, tasks=tasks)
        return None

    def begin(self, tasks: Sequence[Task]) -> Upload:
        """An upload of the first of these, as many as a server takes; durable before it is sent.

        Raises:
            NotSavedError: the disk refuses.
        """
        lines = [task.to_line() for task in tasks[: _LIMITS.lines]]
        count = sum(size <= _LIMITS.upload_bytes for size in accumulate(map(len, lines)))
        data = b"".join(lines[:count])
        file = write_whole(self.path / f"upload-{secrets.token_hex(16)}.jsonl", data)
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name, too
        finally:
            os.close(folder)
        return Upload(file=file, data=data, tasks=tasks[:count])

    def accepted(self, upload: Upload, batch_id: str) -> Upload:
        """The server has it as this batch."""
        file = upload.file.rename(self.path / f"batch-{batch_id}.jsonl")
        return replace(upload, file=file)

    def end(self, upload: Upload) -> None:
        """It is of no more use: all of it is recorded, or the server has it not."""
        upload.file.unlink()

    def save(self, task: Task, pictures: list[Picture]) -> tuple[str, ...]:
        """Write the images, each complete or not at all.

        Raises:
            NotSavedError: the disk refuses.
        """
        stem = f"{task.prompt.number:04d}"
        return tuple(path.name for path in save_pictures(self.path, stem, pictures))

    def append(self, record: Record) -> None:
        """Make the outcome durable, then drop the images that it replaces.

        Raises:
            BatchFolderError: the disk refuses.
        """
        try:
            with self.results.open("ab") as file:
                file.write(_RECORD.dump_json(record) + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise BatchFolderError(self.results, f"{error.strerror or error}.") from error
        replaced = self._last.get(record.number)
        self._last[record.number] = record
        if replaced and record.is_success:
            for name in set(replaced.files) - set(record.files):
                (self.path / Path(name).name).unlink(missing_ok=True)

    def _has(self, files: tuple[str, ...]) -> bool:
        return all((self.path / name).exists() for name in files)


def _records(path: Path) -> list[Record]:
    """The results so far. The file is there from the first run on: it tells our folders apart."""
    file = path / "results.jsonl"
    if not file.exists():
        if any(re.fullmatch(r"\d{4,}(-\d)?\.\w+", found.name) for found in path.iterdir()):
            reason = "holds images but no results.jsonl: choose a new folder for --out."
            raise BatchFolderError(path, reason)
        file.touch()
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        # A crash cut the last line. The batch that it belongs to is still followed.
        os.truncate(file, len(whole))
    records = list[Record]()
    for line, raw in enumerate(whole.splitlines(), start=1):
        try:
            records.append(_RECORD.validate_json(raw))
        except ValidationError as error:
            reason = f"line {line} is damaged: remove it, and its prompt is drawn again."
            raise BatchFolderError(file, reason) from error
    return records


_RECORD: TypeAdapter[Record] = TypeAdapter(Record)
