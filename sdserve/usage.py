"""What jobs used, in integers, so that sums over jobs and days are exact. Pure."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, date, datetime, timedelta
from typing import Any, Self

from sdserve.generation import ComputeMetrics

DAY_MS = 86_400_000
KEPT_DAYS = 400  # after its last new counter (common.lua)
ALL_APPS = ""  # in the place of an app: the total of a client
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a replica spent on a job in the attempt that ended it.

    An attempt that was lost, or handed back to the queue, is nobody's: it spent for nothing.
    """

    steps: int = 0  # denoising steps taken
    gpu_ms: int = 0  # 0 on a CPU
    cpu_ms: int = 0
    energy_mj: int = 0  # of the GPU's board; 0 where it does not tell

    @classmethod
    def of(cls, metrics: ComputeMetrics, *, steps: int) -> Self:
        return cls(
            steps=steps,
            gpu_ms=round(1000 * (metrics.gpu_seconds or 0)),
            cpu_ms=round(1000 * metrics.cpu_seconds),
            energy_mj=round(1000 * (metrics.gpu_energy_joules or 0)),
        )


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The bill of one ended job, or the sum over several."""

    jobs_succeeded: int = 0
    jobs_failed: int = 0
    jobs_cancelled: int = 0
    images: int = 0  # of succeeded jobs
    steps: int = 0  # these and all below: of every job, however it ended
    gpu_ms: int = 0
    cpu_ms: int = 0
    energy_mj: int = 0
    result_bytes: int = 0  # of encoded images that were stored

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in METRICS})

    def told(self) -> dict[str, int | float]:
        """The amounts as clients are told them: in seconds and joules."""
        return {
            "jobs_succeeded": self.jobs_succeeded,
            "jobs_failed": self.jobs_failed,
            "jobs_cancelled": self.jobs_cancelled,
            "images": self.images,
            "steps": self.steps,
            "gpu_seconds": self.gpu_ms / 1000,
            "cpu_seconds": self.cpu_ms / 1000,
            "energy_joules": self.energy_mj / 1000,
            "result_bytes": self.result_bytes,
        }

    def nonzero(self) -> dict[str, int]:
        """The amounts by metric, without those that are 0."""
        return {name: value for name, value in asdict(self).items() if value}


METRICS = tuple(field.name for field in fields(Usage))


@dataclass(frozen=True, kw_only=True)
class DayUsage:
    """What one client used of one app, or of all, on one day."""

    day: int  # days since 1970-01-01, UTC, by the store's clock
    client: str
    app: str  # or ALL_APPS
    usage: Usage


@dataclass(frozen=True, kw_only=True)
class UsageFilter:
    """Which rows of a day are asked for: by client and app, or of each client in all."""

    client: str | None = None  # None: of every client
    app: str | None = None  # None: of every app
    by_app: bool = False  # without `app`: a row for each app, else the clients' totals

    @property
    def fields(self) -> list[str] | None:
        """The fields of a day's hash that hold the answer; None: only a search finds them."""
        if self.client is None or (self.app is None and self.by_app):
            return None
        app = ALL_APPS if self.app is None else self.app
        return [field_name(self.client, app, metric) for metric in METRICS]

    @property
    def pattern(self) -> str:
        """A glob of Redis for the names of those fields."""
        client = "*" if self.client is None else _literally(self.client)
        every = "?*" if self.by_app else ALL_APPS
        return field_name(client, every if self.app is None else _literally(self.app), "*")


def _literally(text: str) -> str:
    return re.sub(r"([\\*?\[\]^])", r"\\\1", text)


def number_of(day: date) -> int:
    """Days from 1970-01-01 to `day`."""
    return (day - _EPOCH).days


def date_of(number: int) -> date:
    """The reverse of `number_of`."""
    return _EPOCH + timedelta(days=number)


def day_of(time: datetime) -> int:
    """Days from 1970-01-01 to the day of `time` in UTC."""
    return number_of(time.astimezone(UTC).date())


def field_name(client: str, app: str, metric: str) -> str:
    """A field of the hash of a day, `keys.USAGE`."""
    return f"{client}|{app}|{metric}"


def read_day(day: int, amounts: Mapping[str, int]) -> list[DayUsage]:
    """The rows behind (some) fields of the hash of a day, by client and app."""
    rows = defaultdict[tuple[str, str], dict[str, Any]](dict)
    for name, amount in amounts.items():
        client, app, metric = name.split("|")
        rows[client, app][metric] = amount
    return [
        DayUsage(day=day, client=client, app=app, usage=Usage(**row))
        for (client, app), row in sorted(rows.items())
    ]
