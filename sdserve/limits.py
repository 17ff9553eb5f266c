"""How much the store takes: bounds that hold for all apps together. Pure."""

import re
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Self

# Of jobs that were cancelled before they ever ran: how long a record is kept at most, and how many
# of one client's.
UNRUN_TTL = timedelta(minutes=10)
UNRUN_LIMIT = 1_000
# Until then a job whose record has expired answers 410 (gone), afterwards 404 (unknown).
REMEMBERED = timedelta(days=7)

_RATE = re.compile(r"(\d{1,9})/(second|minute|hour|day)")
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}


@dataclass(frozen=True, kw_only=True)
class Rate:
    """So many requests in so many seconds, at any time."""

    requests: int
    seconds: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `600/minute`.

        Raises:
            ValueError: it is not of this form.
        """
        match = _RATE.fullmatch(text)
        if match is None or int(match[1]) == 0:
            raise ValueError(f"'{text}' is not a rate: write it as 600/minute (second, hour, day)")
        return cls(requests=int(match[1]), seconds=_SECONDS[match[2]])

    def __str__(self) -> str:
        (unit,) = [name for name, seconds in _SECONDS.items() if seconds == self.seconds]
        return f"{self.requests}/{unit}"


@dataclass(frozen=True, kw_only=True)
class Quotas:
    """What one API key may have. None: no bound; of a key's own quotas: the server's."""

    jobs: int | None = None  # accepted and not ended
    queued: int | None = None  # those of them that no replica has taken
    images_per_day: int | None = None  # drawn on this day (UTC) and asked for by unfinished jobs
    gpu_seconds_per_day: int | None = None  # of jobs that ended on this day
    rate: Rate | None = None

    def over(self, server: "Quotas") -> "Quotas":
        """These, and the server's where there is none."""
        own = {name: getattr(self, name) for name in asdict(self)}
        return Quotas(
            **{
                name: getattr(server, name) if value is None else value
                for name, value in own.items()
            }
        )


@dataclass(frozen=True, kw_only=True)
class ResultBudget:
    """The memory for results, and what goes when it is used up.

    A result is kept for `ttl`. When more than `bytes` are kept, the oldest go before that, but none
    younger than `keep`; where even that does not help, new jobs are refused until it does. A job
    that was accepted always gets its result kept.
    """

    bytes: int = 2**30
    ttl: timedelta = timedelta(hours=1)
    keep: timedelta = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """How much of batches the store takes. Room is counted in lines, in whole parts."""

    lines: int = 100_000  # of one batch
    upload_bytes: int = 64 * 2**20  # of one upload, as it is sent
    client_room: int = 100_000  # for a client's unfinished batches; a nameless one has no bound
    room: int = 300_000  # for all that are kept; the oldest finished ones make room for new ones

    @property
    def full_bytes(self) -> int:
        """Of one upload with its defaults in every line: a short file may say much."""
        return 4 * self.upload_bytes


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one submission must not exceed, besides the length of its app's queue."""

    jobs: int = 10_000  # accepted and not ended, of all apps
    client: Quotas = Quotas(jobs=1_000)  # of one client; a nameless one has no bounds of its own
    webhooks: int = 10_000  # undelivered events of one client, nameless or not
    results: ResultBudget = field(default_factory=ResultBudget)
    batches: BatchLimits = field(default_factory=BatchLimits)
