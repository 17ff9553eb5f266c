"""Pictures and downloads as files, each whole or not at all."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from sdserve.client.errors import NotSavedError
from sdserve.client.views import Picture


class PartialFile:
    """A file that gets its name when it is complete. Beside it, until then, `.NAME.part`."""

    def __init__(self, path: Path) -> None:
        """Begin it.

        Raises:
            NotSavedError: the disk refuses.
        """
        self._path = path
        self._part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("wb")
        except OSError as error:
            raise NotSavedError(path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.drop()

    def write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise NotSavedError(self._path, error) from error

    def keep(self) -> Path:
        """It is complete: on the disk, then under its name."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.replace(self._path)
        except OSError as error:
            raise NotSavedError(self._path, error) from error
        return self._path

    def drop(self) -> None:
        """Leave nothing of it behind, unless it was kept."""
        # A full disk refuses what is left in the buffer: `write` or `keep` has said so.
        with contextlib.suppress(OSError):
            self._file.close()
        self._part.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> Path:
    """Write a file that appears complete or not at all.

    Raises:
        NotSavedError: the disk refuses.
    """
    with PartialFile(path) as file:
        file.write(data)
        return file.keep()


def save_pictures(folder: Path, stem: str, pictures: Sequence[Picture]) -> list[Path]:
    """`STEM.png`, or `STEM-1.png`, `STEM-2.png`, ... when there are several.

    Raises:
        NotSavedError: the disk refuses.
    """
    return [
        write_whole(
            folder / f"{stem}{f'-{k}' if len(pictures) > 1 else ''}{picture.suffix}", picture.data
        )
        for k, picture in enumerate(pictures, start=1)
    ]
