"""What a replica needs to know of its surroundings. A plain value: it crosses processes as JSON."""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from sdserve.limits import ResultBudget


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """The same for every app of a cluster."""

    redis_url: str = field(repr=False)  # has a password
    lease: timedelta
    job_ttl: timedelta
    results: ResultBudget
    max_result_bytes: int
    stop_grace: timedelta  # how long a running job may go on once the replica is told to stop
    step_timeout: timedelta  # of one picture's step or decode on a GPU; then the replica hangs
    load_timeout: timedelta  # of loading without a word of progress
    compile_cache: Path | None = None  # folder for what torch compiles; None: torch chooses
