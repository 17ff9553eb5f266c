"""What jobs used, by key, app or day: for a key its own, for an admin all."""

import re
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from pydantic import BeforeValidator

from api.caller import KnownCaller
from api.usage_schemas import UsageBy, UsageList
from sdserve.async_store import AsyncJobStore
from sdserve.errors import InvalidParameterError
from sdserve.usage import KEPT_DAYS, DayUsage, Usage, UsageFilter, date_of, number_of

CSV = "text/csv"
USUAL = timedelta(days=29)  # before the last day, when no first one is given


DISPOSITION = {
    "description": "a file's name, for CSV",
    "schema": {"type": "string"},
    "example": 'attachment; filename="usage-by-day-2026-11-01-2026-11-30.csv"',
}


class UsageFormat(StrEnum):
    """How the answer is written."""

    JSON = "json"
    CSV = "csv"


def _iso(text: str) -> str:
    """Only a date as it is written here: pydantic would also take a number of seconds for one."""
    if re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII) is None:
        raise ValueError("this is no day like 2026-11-24")
    return text


Day = Annotated[date, BeforeValidator(_iso)]
By = Annotated[UsageBy, Query(description="what a row is the sum of")]
First = Annotated[
    Day | None, Query(alias="from", description="first day, UTC; 29 days before `to` if absent")
]
Last = Annotated[Day | None, Query(alias="to", description="last day, UTC; today if absent")]
App = Annotated[str | None, Query(max_length=200, description="of this app only")]
Key = Annotated[
    str | None, Query(max_length=200, description="of this key only; empty: of jobs without a key")
]
Format = Annotated[UsageFormat | None, Query(alias="format", description="goes before `Accept`")]
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": UsageList,
        "description": "the groups that have any usage; as CSV on request",
        "content": {CSV: {"schema": {"type": "string"}}},
        "headers": {"Content-Disposition": DISPOSITION},
    },
}


class UsageRoutes:
    """The one route of the gateway about usage."""

    def __init__(self, store: AsyncJobStore) -> None:
        self._store = store

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1", tags=["usage"])
        router.get("/usage", response_model=None, responses=_ANSWERS)(self.usage)
        return router

    async def usage(
        self,
        caller: KnownCaller,
        by: By = UsageBy.DAY,
        first: First = None,
        last: Last = None,
        app: App = None,
        key: Key = None,
        written: Format = None,
        accept: Annotated[str | None, Header(include_in_schema=False)] = None,
    ) -> UsageList | Response:
        """Jobs by their end, images, steps, GPU and CPU time, energy and bytes of results."""
        last = last or datetime.now(UTC).date()
        first = first or last - min(USUAL, last - date.min)
        days = range(number_of(first), number_of(last) + 1)
        if not 1 <= len(days) <= KEPT_DAYS:
            message = f"ask for 1 to {KEPT_DAYS} days, `from` not after `to`"
            raise InvalidParameterError("from", message)
        groups = defaultdict[str, Usage](Usage)
        # What is another key's does not exist: a key that asks for it gets no rows.
        if key is None or caller.may_see(key):
            client = key if caller.is_admin else caller.client
            wanted = UsageFilter(client=client, app=app or None, by_app=by is UsageBy.APP)
            async for rows in self._store.usage(days, wanted):
                for row in rows:
                    groups[_group(by, row)] += row.usage
        answer = UsageList.of(by, first, last, groups)
        if written is UsageFormat.CSV or (written is None and _prefers_csv(accept)):
            name = f"usage-by-{by}-{first}-{last}.csv"
            headers = {"Content-Disposition": f'attachment; filename="{name}"'}
            return Response(answer.to_csv(), media_type=CSV, headers=headers)
        return answer


def _group(by: UsageBy, row: DayUsage) -> str:
    match by:
        case UsageBy.KEY:
            return row.client
        case UsageBy.APP:
            return row.app
        case UsageBy.DAY:
            return date_of(row.day).isoformat()


def _prefers_csv(accept: str | None) -> bool:
    """Whether CSV is named before JSON."""
    for token in (accept or "").split(","):
        media_type = token.split(";")[0].strip().lower()
        if media_type in (CSV, "application/json", "*/*"):
            return media_type == CSV
    return False
