"""The folder of a batch: its id, its images, its results. All that a resumed run needs to know.

batch.json      the random id that every idempotency key is derived from
results.jsonl   one Record a line, appended as prompts finish; the last one of a prompt counts
0001.png ...    the images, by the prompt's number
.lock           held while a run works here
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TextIO

from pydantic import TypeAdapter, ValidationError

from deploy_scripts.prompt_file import Prompt
from sdserve.client import Picture
from sdserve.client.files import save_pictures, write_whole
from sdserve.errors import SdServeError
from sdserve.jobs import JobFailure, JobStatus


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
    job_id: str | None = None  # None: refused before it became a job
    files: tuple[str, ...] = ()  # names in the folder
    seed: int | None = None  # of the first image
    seconds: float | None = None  # acceptance to end, by the server's clock
    compute_metrics: dict[str, Any] | None = None
    error: JobFailure | None = None
    attempt: int = 1  # part of the idempotency key
    digest: str = ""  # of app and body: a changed prompt is new work

    @property
    def is_success(self) -> bool:
        return self.status is JobStatus.SUCCEEDED


@dataclass(frozen=True, kw_only=True)
class Task:
    """One prompt that still has to be done, under the key that makes it happen once."""

    prompt: Prompt
    attempt: int
    digest: str
    replaces: tuple[str, ...] = ()  # images of this number from an earlier prompt file
    is_changed: bool = False  # the folder has a result of another prompt at this place


class BatchFolder:
    """An open folder. One process at a time."""

    def __init__(self, path: Path, batch_id: str, records: list[Record], lock: TextIO) -> None:
        self.path = path
        self.id = batch_id
        self.results = path / "results.jsonl"
        self._lock = lock
        self._last: dict[int, Record] = {}
        self._last_of_body: dict[tuple[int, str], Record] = {}
        for record in records:
            self._remember(record)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the folder, or make a new one.

        Raises:
            BatchFolderError: not a folder of ours, damaged, or in use by another run.
            NotSavedError: the disk refuses.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / ".lock").open("w")
        except OSError as error:
            raise BatchFolderError(path, f"{error.strerror or error}.") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return cls(path, _batch_id(path), _records(path / "results.jsonl"), lock)
        except BlockingIOError as error:
            lock.close()
            raise BatchFolderError(path, "another submit_batch is working here.") from error
        except BaseException:
            lock.close()
            raise

    def close(self) -> None:
        self._lock.close()

    def task(self, app: str, prompt: Prompt) -> Task | None:
        """What is left to do for the prompt; None when its images are here."""
        digest = _digest(app, prompt.body)
        last = self._last.get(prompt.number)
        same = self._last_of_body.get((prompt.number, digest))
        if last and last is same and last.is_success and self._has(last.files):
            return None
        attempt = 1
        if same:
            # A failed key stays failed on the server. A succeeded one only gives its images again.
            attempt = same.attempt if same.is_success else same.attempt + 1
        is_changed = last is not None and last.digest != digest
        return Task(
            prompt=prompt,
            attempt=attempt,
            digest=digest,
            replaces=last.files if last else (),
            is_changed=is_changed,
        )

    def key(self, task: Task, attempt: int) -> str:
        """The idempotency key: the same for the same try of the same prompt in this folder."""
        return f"batch-{self.id}-{task.prompt.number}-{task.digest}-{attempt}"

    def records_beyond(self, count: int) -> int:
        """How many results belong to prompts that the file no longer has."""
        return sum(number > count for number in self._last)

    def save(self, task: Task, pictures: list[Picture]) -> tuple[str, ...]:
        """Write the images, each complete or not at all.

        Raises:
            NotSavedError: the disk refuses.
        """
        stem = f"{task.prompt.number:04d}"
        return tuple(path.name for path in save_pictures(self.path, stem, pictures))

    def append(self, record: Record, replaces: tuple[str, ...]) -> None:
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
        self._remember(record)
        if record.is_success:
            for name in set(replaces) - set(record.files):
                (self.path / Path(name).name).unlink(missing_ok=True)

    def _has(self, files: tuple[str, ...]) -> bool:
        return all((self.path / name).exists() for name in files)

    def _remember(self, record: Record) -> None:
        self._last[record.number] = record
        self._last_of_body[record.number, record.digest] = record


def _digest(app: str, body: dict[str, Any]) -> str:
    canonical = json.dumps([app, body], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _batch_id(path: Path) -> str:
    """The stored id of the folder, or a new one, stored before anything is submitted."""
    file = path / "batch.json"
    try:
        batch_id = json.loads(file.read_bytes())["id"]
    except FileNotFoundError:
        if any(
            re.fullmatch(r"\d{4,}(-\d)?\.\w+|results\.jsonl", found.name)
            for found in path.iterdir()
        ):
            raise BatchFolderError(
                path, "holds results but no batch.json: choose a new folder for --out."
            ) from None
        batch_id = secrets.token_hex(8)
        write_whole(file, json.dumps({"id": batch_id}).encode() + b"\n")
        return batch_id
    except (ValueError, KeyError, TypeError) as error:
        raise BatchFolderError(file, "is damaged: choose a new folder for --out.") from error
    if not isinstance(batch_id, str) or not re.fullmatch(r"[0-9a-f]{16}", batch_id):
        raise BatchFolderError(file, "is damaged: choose a new folder for --out.")
    return batch_id


def _records(file: Path) -> list[Record]:
    if not file.exists():
        return []
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        # A crash cut the last line. Its images come back under the same key.
        os.truncate(file, len(whole))
    records: list[Record] = []
    for line, raw in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            records.append(_RECORD.validate_json(raw))
        except ValidationError as error:
            reason = (
                f"line {line} is damaged: remove that line, its prompt is then looked up again."
            )
            raise BatchFolderError(file, reason) from error
    return records


_RECORD: TypeAdapter[Record] = TypeAdapter(Record)
