"""A file of prompts (.txt, .csv, .jsonl) as checked request bodies. No network."""

import csv
import difflib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from api.schemas import GenerateRequest
from sdserve.errors import SdServeError
from sdserve.families import SCHEDULERS

FIELDS = tuple(GenerateRequest.model_fields)

_MOST_PROBLEMS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One request of the batch."""

    number: int  # place among the file's prompts, from 1: names its image
    line: int  # line of the file where it starts, from 1
    body: dict[str, Any]  # the request fields that are given

    @property
    def text(self) -> str:
        return self.body["prompt"]


class PromptFileError(SdServeError):
    """The file cannot be submitted; every bad line is named with its reason."""

    code = "invalid_prompt_file"

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")


class BadLinesError(PromptFileError):
    """Lines that cannot be submitted."""

    def __init__(self, path: Path, problems: list[tuple[int, str]]) -> None:
        shown = [f"  line {line}: {reason}" for line, reason in problems[:_MOST_PROBLEMS_SHOWN]]
        if more := len(problems) - len(shown):
            shown.append(f"  and {more} more")
        count = "1 bad line" if len(problems) == 1 else f"{len(problems)} bad lines"
        super().__init__(path, "\n".join([f"{count}, so nothing was submitted.", *shown]))


class FieldError(ValueError):
    """A request field that is wrong; the message says what it must be."""


def read_prompts(path: Path, defaults: Mapping[str, Any]) -> list[Prompt]:
    """All prompts of the file, or none.

    Args:
        path: a .txt, .csv or .jsonl file in UTF-8.
        defaults: request fields for prompts that do not set their own.

    Raises:
        PromptFileError: no such file, another kind of file, no prompt in it, or bad lines.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise PromptFileError(path, f"its name must end in {', '.join(_READERS)}.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PromptFileError(path, f"{error.strerror or error}.") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BadLinesError(path, [(line, "is not UTF-8 text")]) from error
    prompts: list[Prompt] = []
    problems: list[tuple[int, str]] = []
    for line, given in reader(text):
        try:
            if isinstance(given, str):
                raise FieldError(given)
            body = dict(defaults) | check_fields(given)
            prompts.append(Prompt(number=len(prompts) + 1, line=line, body=body))
        except FieldError as error:
            problems.append((line, str(error)))
    if problems:
        raise BadLinesError(path, problems)
    if not prompts:
        raise PromptFileError(path, "holds no prompt.")
    return prompts


def check_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Request fields with the types that the server wants, by the server's own model.

    Raises:
        FieldError: a field is unknown, missing or wrong.
    """
    for name in given:
        if name not in FIELDS:
            raise FieldError(_unknown("field", name))
    try:
        request = GenerateRequest.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        raise FieldError(f"{first['loc'][0]}: {first['msg']}") from error
    if not request.prompt.strip():
        raise FieldError("prompt: is blank")
    if request.scheduler is not None and request.scheduler not in SCHEDULERS:
        message = f"'{request.scheduler}' is unknown; choose one of {', '.join(SCHEDULERS)}"
        raise FieldError(f"scheduler: {message}")
    return request.model_dump(mode="json", exclude_unset=True)


# A reader yields (line, the fields that are given, or the reason why the line is bad).
_Lines = Iterator[tuple[int, dict[str, Any] | str]]


def _read_txt(text: str) -> _Lines:
    # Not splitlines(): a form feed or U+2028 inside a prompt is no end of line to any editor.
    for line, raw in enumerate(text.split("\n"), start=1):
        prompt = raw.strip()
        if prompt and not prompt.startswith("#"):
            yield line, {"prompt": prompt}


def _read_jsonl(text: str) -> _Lines:
    for line, raw in enumerate(text.split("\n"), start=1):
        if not raw.strip():
            continue
        try:
            entry = json.loads(raw, parse_constant=_refuse_constant)
        except json.JSONDecodeError as error:
            yield line, f"is not JSON: {error.msg} at column {error.colno}"
        except (ValueError, RecursionError) as error:
            yield line, f"is not JSON: {error}"
        else:
            if isinstance(entry, dict):
                yield line, {name: value for name, value in entry.items() if value is not None}
            else:
                yield line, 'is not a JSON object like {"prompt": "a red fox"}'


def _read_csv(text: str) -> _Lines:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    while True:
        line = rows.line_num + 1  # a quoted cell may hold line breaks: where the row starts
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield line, f"is not CSV: {error}"
            return
        if row is None:
            return
        if not any(cell.strip() for cell in row):
            continue
        if not header:
            header = [name.strip() for name in row]
            if reason := _header_problem(header):
                yield line, reason
                return
        elif len(row) > len(header):
            reason = f"has {len(row)} cells, the header has {len(header)}"
            yield line, f"{reason}: put quotes around a prompt with commas"
        else:
            cells = {name: cell.strip() for name, cell in zip(header, row, strict=False)}
            yield line, {name: cell for name, cell in cells.items() if cell}


def _header_problem(header: list[str]) -> str | None:
    for name in header:
        if name not in FIELDS:
            return _unknown("column", name)
        if header.count(name) > 1:
            return f"column '{name}' appears twice"
    return None if "prompt" in header else "the header has no column 'prompt'"


def _unknown(what: str, name: str) -> str:
    near = difflib.get_close_matches(name, FIELDS, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(FIELDS)}"
    return f"{what} '{name}' is unknown ({hint})"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


_READERS: dict[str, Callable[[str], _Lines]] = {
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
}
