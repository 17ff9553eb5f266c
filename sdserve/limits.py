"""How much the store takes: bounds that hold for all apps together. Pure."""

from dataclasses import dataclass, field
from datetime import timedelta


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
    upload_bytes: int = 64 * 2**20  # of one upload
    client_room: int = (
        100_000  # for a client's unfinished batches; a nameless one has no such bound
    )
    room: int = 300_000  # for all that are kept; the oldest finished ones make room for new ones


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one submission must not exceed, besides the length of its app's queue."""

    jobs: int = 10_000  # accepted and not ended, of all apps
    client_jobs: int = 1_000  # the same of one client; a nameless client has no bound of its own
    results: ResultBudget = field(default_factory=ResultBudget)
    batches: BatchLimits = field(default_factory=BatchLimits)
