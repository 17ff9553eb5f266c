"""No bytes at all make the header's reader hang, crash or lie: they are refused in a sentence."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdserve.checkpoints import inspect_checkpoint
from sdserve.errors import CheckpointError
from tools.make_checkpoint import make_checkpoint

ROUNDS = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """The bytes of a good checkpoint, and where its tensors begin."""
    path = make_checkpoint(tmp_path_factory.mktemp("fuzz") / "a.safetensors", "sd1")
    content = path.read_bytes()
    return content, 8 + struct.unpack("<Q", content[:8])[0]


def refused_or_read(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    reason = _reason(path)
    assert reason is None or (reason.endswith(".") and len(reason) < 600)


def _reason(path: Path) -> str | None:
    try:
        inspect_checkpoint(path)
    except CheckpointError as error:
        return error.reason
    return None


@ROUNDS
@given(data=st.data())
def test_flipped_bytes(tmp_path: Path, whole: tuple[bytes, int], data: st.DataObject) -> None:
    content, start = bytearray(whole[0]), whole[1]
    for place in data.draw(st.lists(st.integers(0, start - 1), min_size=1, max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    refused_or_read(tmp_path / "a.safetensors", bytes(content))


@ROUNDS
@given(data=st.data())
def test_cut_and_grown_headers(
    tmp_path: Path, whole: tuple[bytes, int], data: st.DataObject
) -> None:
    content, start = whole
    begin = data.draw(st.integers(0, start))
    end = data.draw(st.integers(begin, start))
    grown = data.draw(st.binary(max_size=200))
    header = content[:begin] + grown + content[end:start]
    if data.draw(st.booleans()):  # with a length that fits again
        header = struct.pack("<Q", max(0, len(header) - 8)) + header[8:]
    refused_or_read(tmp_path / "a.safetensors", header + content[start:])


@ROUNDS
@given(
    table=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    entry=st.dictionaries(
        st.sampled_from(["dtype", "shape", "data_offsets"]),
        st.sampled_from(["F16", "F4"]) | st.lists(st.integers(-(2**70), 2**70), max_size=3),
    ),
)
def test_any_json(tmp_path: Path, table: object, entry: dict[str, object]) -> None:
    for header in (table, {"weight": entry, "__metadata__": table}, {"weight": table}):
        text = json.dumps(header).encode()
        content = struct.pack("<Q", len(text)) + text + b"\0" * 64
        refused_or_read(tmp_path / "a.safetensors", content)
