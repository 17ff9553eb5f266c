"""The calls about batches, as programs: uploads, results line by line, all pictures. No I/O."""

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

from sdserve.client import answers
from sdserve.client.connection import ANSWER_MARGIN, Connection
from sdserve.client.effects import (
    Emit,
    Lost,
    NextPart,
    Part,
    Perform,
    Program,
    Reading,
    Request,
    Series,
)
from sdserve.client.files import PartialFile
from sdserve.client.views import BatchLineView, BatchView

_UPLOAD_SILENCE = 300.0  # seconds: a hundred thousand lines are checked before the answer


class BatchCalls:
    """Upload, look, collect, cancel."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(
        self,
        lines: Iterable[Mapping[str, object]] | bytes,
        *,
        app: str | None,
        defaults: Mapping[str, object] | None,
        webhook: str | None,
        idempotency_key: str | None,
    ) -> Program[BatchView]:
        params = {"app": app} if app else {}
        params |= {"defaults": json.dumps(dict(defaults))} if defaults else {}
        params |= {"webhook": webhook} if webhook else {}
        content = lines if isinstance(lines, bytes) else b"".join(map(_json_line, lines))
        request = Request(
            method="POST",
            path="/v1/batches",
            params=params,
            headers={
                "Content-Type": "application/jsonl",
                "Idempotency-Key": idempotency_key or str(uuid4()),
            },
            content=content,
            silence=_UPLOAD_SILENCE,
        )
        response = yield from self._connection.send(request)
        return answers.batch_view(str(response.url), answers.json_object(response))

    def batch(self, batch_id: str) -> Program[BatchView]:
        return (yield from self._ask("GET", batch_id))

    def cancel(self, batch_id: str) -> Program[BatchView]:
        return (yield from self._ask("DELETE", batch_id))

    def _ask(self, method: str, batch_id: str) -> Program[BatchView]:
        request = Request(method=method, path=_batch_path(batch_id), silence=ANSWER_MARGIN)
        response = yield from self._connection.send(request)
        return answers.batch_view(str(response.url), answers.json_object(response))

    def results(self, batch_id: str, *, after: int) -> Series[BatchLineView]:
        """JSON Lines as they arrive; after a lost connection, from the last whole one."""
        broken = self._connection.retry()
        while True:
            request = Request(
                method="GET",
                path=_batch_path(batch_id) + "/results",
                params={"cursor": str(after)},
                silence=ANSWER_MARGIN,
                reading=Reading.BYTES,
            )
            url = str((yield from self._connection.send(request)).url)
            rest = b""
            part: Part | Lost = yield NextPart()
            while isinstance(part, bytes):
                *whole, rest = (rest + part).split(b"\n")
                for text in whole:
                    line = answers.batch_line(url, text)
                    after = line.line
                    broken.succeeded()
                    yield Emit(value=line)
                part = yield NextPart()
            if not isinstance(part, Lost):
                return
            yield from self._connection.lost(broken, part)

    def download(self, batch_id: str, path: Path) -> Program[Path]:
        """The zip as a stream; after a lost connection, from its beginning."""
        broken = self._connection.retry()
        while True:
            request = Request(
                method="GET",
                path=_batch_path(batch_id) + "/images.zip",
                silence=ANSWER_MARGIN,
                reading=Reading.BYTES,
            )
            yield from self._connection.send(request)
            file: PartialFile = yield Perform(work=partial(PartialFile, path))
            try:
                part: Part | Lost = yield NextPart()
                while isinstance(part, bytes):
                    yield Perform(work=partial(file.write, part))
                    part = yield NextPart()
                if not isinstance(part, Lost):
                    kept: Path = yield Perform(work=file.keep)
                    return kept
            finally:
                file.drop()
            yield from self._connection.lost(broken, part)


def _json_line(line: Mapping[str, object]) -> bytes:
    return json.dumps(dict(line)).encode() + b"\n"


def _batch_path(batch_id: str) -> str:
    return f"/v1/batches/{quote(batch_id, safe='')}"
