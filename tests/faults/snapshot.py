"""All that Redis holds of the product at one moment, for the checker."""

import json
from dataclasses import dataclass, field
from typing import Any

from redis import Redis

from sdserve import keys


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A job's hash."""

    app: str
    status: str
    attempt: int
    max_attempts: int
    ttl: int  # seconds; -1: for ever
    error: str | None = None
    results: tuple[str, ...] = ()  # keys
    client: str = ""
    ended: int | None = None  # server milliseconds
    usage: dict[str, int] = field(default_factory=dict[str, int])  # metric -> amount


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Redis at one moment."""

    jobs: dict[str, JobRecord] = field(default_factory=dict[str, JobRecord])
    queued: dict[str, list[str]] = field(default_factory=dict[str, list[str]])  # app -> ids
    leased: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    blobs: dict[str, int] = field(default_factory=dict[str, int])  # key -> TTL in seconds
    counters: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    load: dict[str, int] = field(default_factory=dict[str, int])  # counts of unfinished jobs
    # day -> client|app|metric -> amount
    usage: dict[int, dict[str, int]] = field(default_factory=dict[int, dict[str, int]])


def take_snapshot(redis: Redis) -> Snapshot:
    """Read it all. Only of use once nobody writes any more."""
    snapshot = Snapshot()
    for key in _names(redis, keys.JOB):
        fields: Any = redis.hgetall(key)
        job = {name.decode(): value.decode() for name, value in fields.items()}
        meta = json.loads(job.get("meta", "{}"))
        snapshot.jobs[key.removeprefix(keys.JOB)] = JobRecord(
            app=job["app"],
            status=job["status"],
            attempt=int(job["attempt"]),
            max_attempts=int(job["max_attempts"]),
            ttl=_ttl(redis, key),
            error=(meta.get("error") or {}).get("code"),
            results=tuple(meta.get("results") or ()),
            client=job["client"],
            ended=int(job["ended"]) if "ended" in job else None,
            usage=json.loads(job.get("usage", "{}")),
        )
    for prefix, sets in ((keys.QUEUE, snapshot.queued), (keys.LEASE, snapshot.leased)):
        for key in _names(redis, prefix):
            ids: Any = redis.zrange(key, 0, -1)
            sets[key.removeprefix(prefix)] = [job_id.decode() for job_id in ids]
    for key in _names(redis, keys.RESULT):
        snapshot.blobs[key] = _ttl(redis, key)
    for key in _names(redis, keys.APP):
        counts: Any = redis.hmget(key, "succeeded", "failed", "cancelled")
        names = ("succeeded", "failed", "cancelled")
        snapshot.counters[key.removeprefix(keys.APP)] = {
            name: int(count or 0) for name, count in zip(names, counts, strict=True)
        }
    load: Any = redis.hgetall(keys.LOAD)
    for name, count in load.items():
        if name != b"bytes":
            snapshot.load[name.decode()] = int(count)
    for key in _names(redis, keys.USAGE):
        amounts: Any = redis.hgetall(key)
        snapshot.usage[int(key.removeprefix(keys.USAGE))] = {
            name.decode(): int(amount) for name, amount in amounts.items()
        }
    return snapshot


def _names(redis: Redis, prefix: str) -> list[str]:
    return sorted(key.decode() for key in redis.scan_iter(match=prefix + "*", count=1000))


def _ttl(redis: Redis, key: str) -> int:
    ttl: Any = redis.ttl(key)
    return int(ttl)
