"""The pictures of a batch as one zip, made while it is sent: no more than one line is in memory."""

import re
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Self

from pydantic import Field
from zipstream import ZipStream  # stores by default: pictures are compressed already

from api.batch_schemas import LineResult
from sdserve.batches import Batch, BatchLine, LineState

RESULTS = "results.jsonl"
SPOOLED_BYTES = 2**20  # of the results; beyond, they wait in a temporary file

Fetch = Callable[[Sequence[str]], Awaitable[list[bytes | None]]]

_SUFFIXES = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}


class ZippedLine(LineResult):
    """A line of results.jsonl in the zip."""

    files: list[str] = Field(description="its pictures in this zip")
    expired: int = Field(description="pictures that were kept no longer")

    @classmethod
    def in_zip(cls, batch: Batch, line: BatchLine, state: LineState, files: list[str]) -> Self:
        expired = len(state.result_keys) - len(files)
        result = LineResult.of(batch, line, state)
        return cls(**dict(result), files=files, expired=expired)


async def zip_pictures(
    batch: Batch, lines: AsyncIterator[tuple[BatchLine, LineState]], fetch: Fetch
) -> AsyncGenerator[bytes]:
    """The bytes of a zip: every picture that is still kept, and results.jsonl at its end."""
    archive = ZipStream()
    with tempfile.SpooledTemporaryFile(SPOOLED_BYTES) as results:
        async for line, state in lines:
            files = list[str]()
            pictures = await fetch(state.result_keys) if state.result_keys else []
            for number, picture in enumerate(pictures):
                if picture is None:
                    continue
                name = _name(line, number if len(pictures) > 1 else None)
                archive.add(picture, name)
                for piece in archive.file():
                    yield piece
                files.append(name)
            entry = ZippedLine.in_zip(batch, line, state, files)
            results.write(entry.model_dump_json().encode() + b"\n")
        results.seek(0)
        archive.add(results, RESULTS)
        for piece in archive.finalize():
            yield piece


def _name(line: BatchLine, number: int | None) -> str:
    """`000012-CUSTOM-2.png`: in order when sorted, with nothing of a path in it."""
    parts = [f"{line.number:06d}"]
    if line.custom_id is not None:
        parts.append(re.sub(r"[^A-Za-z0-9_-]+", "_", line.custom_id)[:60])
    if number is not None:
        parts.append(str(number + 1))
    return f"{'-'.join(parts)}.{_SUFFIXES[line.params.format.media_type]}"
