"""Files with the header of a model and no weights."""

import json
import struct
from pathlib import Path

import pytest

from sdserve.checkpoints import inspect_checkpoint
from sdserve.errors import CheckpointError

Shapes = dict[str, tuple[int, ...]]


def header_of(shapes: Shapes, metadata: dict[str, str] | None = None) -> dict[str, object]:
    table: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        table[name] = {
            "dtype": "F16",
            "shape": list(shape),
            "data_offsets": [position, position + size],
        }
        position += size
    return table


def write(path: Path, table: object, data_size: int) -> Path:
    text = json.dumps(table).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + data_size)  # sparse: full-size shapes cost no disk
    return path


def write_model(path: Path, shapes: Shapes, metadata: dict[str, str] | None = None) -> Path:
    table = header_of(shapes, metadata)
    last = list(table.values())[-1]
    assert isinstance(last, dict)
    return write(path, table, last["data_offsets"][1])


def refusal(path: Path) -> str:
    """The reason of a refusal; it must name the file once and be one sentence."""
    with pytest.raises(CheckpointError) as caught:
        inspect_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert caught.value.reason.endswith(".")
    return caught.value.reason
