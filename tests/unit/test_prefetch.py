"""Reading ahead: true progress, and a disk that fails is heard."""

import os
from pathlib import Path

import pytest

from workers.prefetch import Prefetch


def test_progress_rises_to_100(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (9 << 20))
    percents = list(Prefetch(path).progress())
    assert percents == sorted(set(percents))
    assert percents[-1] == 100


def test_a_failing_read_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    path = tmp_path / "file"
    path.write_bytes(b"x")
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="Input/output error"):
        list(Prefetch(path).progress())
