"""The header of a .safetensors file, checked byte by byte without torch. Reads no tensor.

Layout (huggingface/safetensors, README "Format"): 8 bytes little-endian header size N, N bytes of
JSON `{name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {str: str}}`, then the
tensors, gapless and in offset order.
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from sdserve.errors import CheckpointError, CheckpointNotFoundError, InvalidCheckpointError

_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_DOWNLOAD_AGAIN = "download it again"


@dataclass(frozen=True, kw_only=True)
class Span:
    """One tensor and its place in the file."""

    dtype: str  # as the format names it, e.g. "F16"
    shape: tuple[int, ...]
    begin: int  # bytes from the start of the file
    end: int


@dataclass(frozen=True, kw_only=True)
class SafetensorsHeader:
    """What a file says of itself."""

    spans: dict[str, Span]  # by the tensor's name
    metadata: dict[str, str]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each tensor, by name."""
        return {name: span.shape for name, span in self.spans.items()}


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check the header of a file.

    Raises:
        CheckpointNotFoundError: no file at this path.
        InvalidCheckpointError: not a complete, well-formed .safetensors file.
        CheckpointError: a file that cannot be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _parse(path, file, size)
    except FileNotFoundError:
        raise CheckpointNotFoundError(
            path, "there is no file here: check the path and the mount of the model folder."
        ) from None
    except IsADirectoryError:
        raise InvalidCheckpointError(
            path, "this is a folder: name one .safetensors file inside it."
        ) from None
    except PermissionError:
        raise CheckpointError(
            path, f"this process may not read it: allow it, e.g. chmod a+r '{path}'."
        ) from None
    except OSError as error:
        raise CheckpointError(
            path, f"reading fails ({error.strerror}): check the disk or the mount."
        ) from error


def _parse(path: Path, file: BinaryIO, size: int) -> SafetensorsHeader:
    start = file.read(512)
    if size == 0:
        _refuse(path, f"the file is empty (0 bytes): {_DOWNLOAD_AGAIN}.")
    _refuse_other_formats(path, start)
    if size < 8:
        _refuse(path, f"the download was cut off after {size} bytes: {_DOWNLOAD_AGAIN}.")
    length = int.from_bytes(start[:8], "little")
    if length > _MAX_HEADER:
        _refuse(
            path,
            f"this is not a .safetensors file (it declares a header of {length:,} bytes): "
            f"{_DOWNLOAD_AGAIN}, or convert it to .safetensors.",
        )
    if 8 + length > size:
        _refuse(
            path,
            f"the download was cut off inside the header, at least {8 + length - size:,} bytes are "
            f"missing: {_DOWNLOAD_AGAIN}.",
        )
    file.seek(8)
    try:
        table: object = json.loads(file.read(length))
    except (ValueError, RecursionError):  # ValueError: bad JSON or bad UTF-8
        table = None
    if not isinstance(table, dict):
        _refuse(path, f"its header is not valid JSON, the file is damaged: {_DOWNLOAD_AGAIN}.")
    return _check(path, table, 8 + length, size - 8 - length)


def _check(path: Path, table: dict[str, Any], start: int, data_size: int) -> SafetensorsHeader:
    """Check every entry against its neighbours and the data's place; `start`, size in bytes."""
    metadata = table.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        _refuse(path, f"its metadata is not a table, the file is damaged: {_DOWNLOAD_AGAIN}.")
    spans: dict[str, Span] = {}
    for name, entry in table.items():
        try:
            begin, end = entry["data_offsets"]
            shape = tuple(entry["shape"])
            whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
            honest = whole and (end - begin) * 8 == prod(shape) * _BITS[entry["dtype"]]
        except (KeyError, TypeError, ValueError):
            honest, shape, begin, end = False, (), 0, 0
        if not honest:
            _refuse(
                path,
                f"the header's entry of tensor '{name}' contradicts itself (type, shape and "
                f"offsets disagree), the file is damaged: {_DOWNLOAD_AGAIN}.",
            )
        spans[name] = Span(dtype=entry["dtype"], shape=shape, begin=start + begin, end=start + end)
    if not spans:
        _refuse(path, f"it holds no tensors: {_DOWNLOAD_AGAIN}.")
    position = start
    for begin, end, name in sorted((span.begin, span.end, name) for name, span in spans.items()):
        if begin != position:
            _refuse(
                path,
                f"tensor '{name}' overlaps another or leaves a gap, the file is damaged: "
                f"{_DOWNLOAD_AGAIN}.",
            )
        position = end
    surplus = start + data_size - position
    if surplus < 0:
        _refuse(
            path,
            f"the download was cut off, {-surplus:,} bytes are missing: {_DOWNLOAD_AGAIN}.",
        )
    if surplus > 0:
        _refuse(
            path,
            f"{surplus:,} bytes follow the last tensor, the file is damaged: {_DOWNLOAD_AGAIN}.",
        )
    return SafetensorsHeader(
        spans=spans, metadata={str(key): str(value) for key, value in metadata.items()}
    )


def _refuse_other_formats(path: Path, start: bytes) -> None:
    """Name what the file is when its first bytes tell: "header too large" helps nobody."""
    convert = "convert it to .safetensors (load and save it on a machine you trust)"
    text = start.lstrip().lower()
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        _refuse(path, f"this is a PyTorch pickle (.ckpt) renamed, which can run code: {convert}.")
    if start.startswith(b"GGUF"):
        _refuse(path, "this is a GGUF file: use the .safetensors file of the same model.")
    if start.startswith(b"version https://git-lfs"):
        _refuse(path, "this is a git-LFS pointer, not the model: run 'git lfs pull' in its folder.")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        _refuse(
            path,
            "this is a web page saved under the model's name (often a login page): "
            "download the file itself.",
        )
    # A real file starts with 8 binary bytes, of which the upper ones are zero.
    if len(start) >= 8 and re.fullmatch(rb"[\x20-\x7e\r\n\t]+", start):
        quote = start[:60].decode("ascii").strip()
        _refuse(path, f"this is a text file ('{quote}'), not a model: {_DOWNLOAD_AGAIN}.")


def _refuse(path: Path, reason: str) -> NoReturn:
    raise InvalidCheckpointError(path, reason)
