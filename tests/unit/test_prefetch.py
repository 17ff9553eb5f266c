"""Reading ahead: true progress, and a disk that fails is heard."""

import os
from pathlib import Path

import pytest

from workers.prefetch import Prefetch


def test_all_that_is_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (9 << 20))
    assert sum(Prefetch(path, [(0, 9 << 20)]).read()) == 9 << 20


def test_a_failing_read_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    path = tmp_path / "file"
    path.write_bytes(b"x")
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="Input/output error"):
        list(Prefetch(path, [(0, 1)]).read())


def test_only_what_is_wanted_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    read = list[tuple[int, int]]()
    preadv = os.preadv

    def spy(file: int, buffers: list[memoryview], offset: int) -> int:
        read.append((offset, offset + sum(map(len, buffers))))
        return preadv(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", spy)
    assert sum(Prefetch(path, [(20, 30), (0, 10), (10, 20), (90, 100)]).read()) == 40
    assert sorted(read) == [(0, 30), (90, 100)]
