"""Values as scripts take and give them: times, spans, bounds, hashes."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sdserve.limits import ResultBudget
from sdserve.operations.operation import Argument


def milliseconds(span: timedelta) -> int:
    return int(span.total_seconds() * 1000)


def time_of(milliseconds: str | bytes | int) -> datetime:
    """A time as scripts write it: milliseconds since 1970."""
    return datetime.fromtimestamp(float(milliseconds) / 1000, UTC)


def fields_of(flat: Sequence[bytes]) -> dict[str, str]:
    """A hash as Lua gives it: names and values in turn."""
    return {flat[i].decode(): flat[i + 1].decode() for i in range(0, len(flat), 2)}


def texts(values: Any) -> list[str | None]:
    """Redis' bytes as text."""
    return [value.decode() if value else None for value in values]


def bound(bound: int | None) -> Argument:
    return "" if bound is None else bound


def budget_of(budget: ResultBudget) -> list[Argument]:
    return [budget.bytes, milliseconds(budget.ttl), milliseconds(budget.keep)]
