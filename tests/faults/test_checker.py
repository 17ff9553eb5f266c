"""Each rule of the checker goes red on a history that breaks it, and a good one stays green."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.faults.checker import Facts, check, check_consistency
from tests.faults.history import Asked, CancelAsked, History, Pried, Seen, Struck
from tests.faults.snapshot import JobRecord, Snapshot

Event = Asked | Seen | CancelAsked | Pried | Struck


def asked(job_id: str | None = "j", **changes: Any) -> Asked:
    fields: dict[str, Any] = {
        "began": 1.0, "at": 2.0, "app": "a", "body": "b", "status": 202, "job_id": job_id,
    }  # fmt: skip
    return Asked(**{**fields, **changes})


def seen(status: str = "succeeded", began: float = 5.0, **changes: Any) -> Seen:
    images = ("x",) if status == "succeeded" else None
    fields: dict[str, Any] = {
        "began": began, "at": began + 1, "job_id": "j", "status": status, "attempt": 1,
        "images": images,
    }  # fmt: skip
    return Seen(**{**fields, **changes})


def record(status: str = "succeeded", **changes: Any) -> JobRecord:
    fields: dict[str, Any] = {
        "app": "a", "status": status, "attempt": 1, "max_attempts": 3, "ttl": 100,
        "results": ("res",) if status == "succeeded" else (),
        "client": "ann", "ended": 20_000 * 86_400_000 + 5,
        "usage": {"images": 1, "gpu_ms": 30} if status == "succeeded" else {"gpu_ms": 30},
    }  # fmt: skip
    return JobRecord(**{**fields, **changes})


def pried(status: int | None) -> Pried:
    return Pried(began=3.0, at=4.0, job_id="j", client="eve", what="look", status=status)


def usage(job: JobRecord, **changes: int) -> dict[str, int]:
    """What the day of this job should tell, but for `changes`."""
    amounts = {**job.usage, f"jobs_{job.status}": 1, **changes}
    return {f"ann|{app}|{metric}": n for app in ("a", "") for metric, n in amounts.items()}


def snapshot(job: JobRecord | None = None, **changes: Any) -> Snapshot:
    job = job or record()
    counters = {name: int(name == job.status) for name in ("succeeded", "failed", "cancelled")}
    fields: dict[str, Any] = {
        "jobs": {"j": job},
        "blobs": dict.fromkeys(job.results, 100),
        "counters": {"a": counters},
        "usage": {20_000: usage(job)},
    }
    return Snapshot(**{**fields, **changes})


def rules(events: list[Event], after: Snapshot) -> set[str]:
    return {violation.rule for violation in check(Facts(events, after))}


GOOD: list[Event] = [asked(), seen("queued", 2.0), seen("running", 3.0), seen(), seen(began=9.0)]


def test_a_good_run_is_green() -> None:
    assert rules(GOOD, snapshot()) == set()
    assert check_consistency(Facts(GOOD, snapshot())) == []


@pytest.mark.parametrize(
    ("rule", "events", "after"),
    [
        ("G1 lost", GOOD, Snapshot()),
        ("G1 unfinished", [asked()], snapshot(record("running", ttl=-1))),
        ("G5 innocent failed", [asked()], snapshot(record("failed", error="internal_error"))),
        ("G5 innocent failed", [asked()], snapshot(record("failed", error="app_gone"))),
        (
            "G5 innocent failed",
            [asked(), *[Struck(at=3.0, kind="kill", app="a", loses_replica=True)] * 2],
            snapshot(record("failed", error="worker_lost")),
        ),
        (  # three losses, but of another app, and before its time
            "G5 innocent failed",
            [
                asked(),
                *[Struck(at=3.0, kind="kill", app="b", loses_replica=True)] * 3,
                *[Struck(at=0.5, kind="kill", app="a", loses_replica=True)] * 3,
            ],
            snapshot(record("failed", error="worker_lost")),
        ),
        ("G2 state changed", [*GOOD, seen("running", 10.0)], snapshot()),
        ("G2 result changed", [*GOOD, seen(began=10.0, images=("y",))], snapshot()),
        ("G2 result of no success", [*GOOD, seen("running", 3.0, images=("x",))], snapshot()),
        (
            "G2 not reproducible",
            [*GOOD, asked("k"), seen(job_id="k", images=("y",))],
            snapshot(),
        ),
        ("G2 result missing", GOOD, snapshot(blobs={})),
        ("G3 two jobs", [asked(key="k"), asked("i", key="k")], snapshot()),
        ("G3 two bodies", [asked(key="k"), asked(key="k", body="c")], snapshot()),
        (
            "G4 cancelled",
            [asked(), CancelAsked(began=3.0, at=4.0, job_id="j", status=202)],
            snapshot(),
        ),
        (
            "G4 cancelled",
            [asked(may_fail=("e",)), CancelAsked(began=3.0, at=4.0, job_id="j", status=200)],
            snapshot(record("failed", error="e")),
        ),
        (
            "G4 result after cancel",
            [*GOOD, CancelAsked(began=3.0, at=4.0, job_id="j", status=202)],
            snapshot(record("cancelled")),
        ),
        ("G5 attempts", GOOD, snapshot(record(attempt=4))),
        (
            "G7 internal error",
            [asked(None, status=500, problem="urn:sdserve:problem:internal_error")],
            snapshot(),
        ),
        (
            "G8 counted",
            GOOD,
            snapshot(counters={"a": {"succeeded": 2, "failed": 0, "cancelled": 0}}),
        ),
        ("G8 counted", GOOD, snapshot(counters={})),
        ("G8 billed", GOOD, snapshot(usage={})),
        ("G8 billed", GOOD, snapshot(usage={20_000: usage(record(), gpu_ms=60)})),
        ("G8 billed", GOOD, snapshot(usage={20_000: usage(record(), jobs_succeeded=2)})),
        ("G8 billed", GOOD, snapshot(usage={20_000: usage(record(), jobs_failed=1)})),
        ("G8 billed", GOOD, snapshot(usage={20_001: usage(record())})),
        ("G8 billed", GOOD, snapshot(usage={20_000: usage(record()), 20_001: {"b|a|steps": 1}})),
        (  # the total of a client is not the sum over its apps
            "G8 billed",
            GOOD,
            snapshot(usage={20_000: {**usage(record()), "ann||gpu_ms": 29}}),
        ),
        ("G8 billed", GOOD, snapshot(record(usage={"images": 2, "gpu_ms": 30}))),
        ("G9 seen by another", [*GOOD, seen(client="eve")], snapshot()),
        ("G9 seen by another", [asked(None), seen(client="eve")], snapshot()),
        ("G9 another's job", [asked(client="eve")], snapshot()),
        *(("G9 got at", [*GOOD, pried(status)], snapshot()) for status in (200, 202, 409, 410)),
        ("leftover in counts", GOOD, snapshot(load={"queued:ann": 1})),
        ("leftover in queue", GOOD, snapshot(queued={"a": ["j"]})),
        ("leftover in leases", GOOD, snapshot(leased={"a": ["j"]})),
        ("orphan result", GOOD, snapshot(blobs={"res": 100, "other": 301})),
        ("orphan result", GOOD, snapshot(blobs={"res": -1})),
        ("job TTL", GOOD, snapshot(record(ttl=-1))),
        ("job TTL", GOOD, snapshot(record("running"))),
    ],
)
def test_a_broken_promise_is_seen(rule: str, events: list[Event], after: Snapshot) -> None:
    assert rule in rules(events, after)


def test_what_is_allowed_is_not_held_against_it() -> None:
    failed = snapshot(record("failed", error="worker_lost"))
    kills = [Struck(at=3.0, kind="kill", app=app, loses_replica=True) for app in ("a", None, "a")]
    assert rules([asked(), *kills], failed) == set()
    assert rules([asked(may_fail=("worker_lost",))], failed) == set()
    gone = snapshot(record("failed", error="app_gone"))
    deleted = Struck(at=3.0, kind="delete", app="a", ends_jobs="app_gone")
    assert rules([asked(), deleted], gone) == set()
    # Two looks at the same time may tell two states; the key's second body was refused.
    overlap = [*GOOD, seen("running", 4.0, at=20.0)]
    assert rules(overlap, snapshot()) == set()
    # Refused, or no answer; the same key of another client is another job.
    tries = [pried(404), pried(503), pried(None)]
    assert rules([*GOOD, *tries], snapshot()) == set()
    eves: list[Event] = [asked(key="k", client="ann"), asked("i", key="k", client="eve")]
    assert "G3 two jobs" not in rules(eves, snapshot())
    assert rules([*GOOD, seen(client="ann")], snapshot()) == set()
    conflict = asked(None, key="k", body="c", status=422)
    assert rules([asked(key="k"), asked(key="k"), conflict, *GOOD[1:]], snapshot()) == set()


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    events = [
        *GOOD,
        replace(asked(), key="k", may_fail=("worker_lost",)),
        CancelAsked(began=1.0, at=2.0, job_id="j", status=None),
        Struck(at=1.0, kind="kill replica", app="a", loses_replica=True),
    ]
    history = History(tmp_path / "history.jsonl")
    for event in events:
        history.add(event)
    history.close()
    assert history.events() == events
