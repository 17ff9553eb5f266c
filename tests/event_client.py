"""A client of Server-Sent Events that shows all it gets: events, comments, the retry."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import httpx

from tests.waiting import LIMIT


@dataclass(frozen=True, kw_only=True)
class Event:
    """One block of a stream."""

    kind: str  # "job", "preview"; "" is a comment
    text: str
    id: str | None = None
    retry: int | None = None

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.text)

    @property
    def place(self) -> tuple[str, int, int | None]:
        """Status, step and position of a job event."""
        return self.data["status"], self.data["progress"]["step"], self.data["position"]


class EventClient:
    """One open stream. Iterating it gives its blocks until it ends."""

    def __init__(
        self,
        url: str,
        job_id: str,
        *,
        last: str | None = None,
        previews: bool = False,
        headers: dict[str, str] | None = None,
    ) -> None:
        self._http = httpx.Client(base_url=url, timeout=LIMIT, trust_env=False)
        headers = {**(headers or {}), **({"Last-Event-ID": last} if last else {})}
        request = self._http.build_request(
            "GET", f"/v1/jobs/{job_id}/events",
            params={"previews": "true"} if previews else None, headers=headers,
        )  # fmt: skip
        self.response = self._http.send(request, stream=True)
        self._blocks = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.response.close()
        self._http.close()

    def __iter__(self) -> Iterator[Event]:
        return self._blocks

    def job(self) -> Event:
        """The next event of the job."""
        return self.next("job")

    def next(self, kind: str) -> Event:
        """The next event of a kind."""
        return next(event for event in self if event.kind == kind)

    def comment(self, part: str) -> Event:
        """The next comment that has this part."""
        return next(event for event in self if not event.kind and part in event.text)

    def _read(self) -> Iterator[Event]:
        fields = dict[str, str]()
        for line in self.response.iter_lines():
            if line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
                continue
            yield Event(
                kind=fields.get("event", ""),
                text=fields.get("data", fields.get("", "")),
                id=fields.get("id"),
                retry=int(fields["retry"]) if "retry" in fields else None,
            )
            fields.clear()
