"""Whether a history kept the promises of docs/guarantees.md. Pure: events and a snapshot in,
violations out.

Each rule goes red on a broken history in test_checker.py.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from sdserve.usage import DAY_MS
from tests.faults.history import Asked, CancelAsked, Pried, Seen, Struck
from tests.faults.snapshot import Snapshot

FINAL = ("succeeded", "failed", "cancelled")
UNCLAIMED_TTL = 300  # seconds that a result nobody finished is kept


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A promise that was broken."""

    rule: str
    message: str


@dataclass(frozen=True)
class Facts:
    """A whole run."""

    events: Sequence[Asked | Seen | CancelAsked | Pried | Struck]
    snapshot: Snapshot

    @cached_property
    def asked(self) -> list[Asked]:
        return [event for event in self.events if isinstance(event, Asked)]

    @cached_property
    def accepted(self) -> dict[str, Asked]:
        """The first acknowledged submission of each job."""
        first = dict[str, Asked]()
        for asked in self.asked:
            if asked.job_id is not None:
                first.setdefault(asked.job_id, asked)
        return first

    @cached_property
    def looks(self) -> dict[str, list[Seen]]:
        looks = defaultdict[str, list[Seen]](list)
        for event in self.events:
            if isinstance(event, Seen):
                looks[event.job_id].append(event)
        return looks

    @cached_property
    def cancels(self) -> list[CancelAsked]:
        return [event for event in self.events if isinstance(event, CancelAsked)]

    @cached_property
    def pried(self) -> list[Pried]:
        return [event for event in self.events if isinstance(event, Pried)]

    @cached_property
    def faults(self) -> list[Struck]:
        return [event for event in self.events if isinstance(event, Struck)]


def check(facts: Facts) -> list[Violation]:
    """All rules, for a server that never lost what it had acknowledged."""
    return _run(facts, [lost, unfinished, innocents, changed, keys_, cancelled, attempts, answers,
                        counters, bills, owners, leftovers])  # fmt: skip


def check_consistency(facts: Facts) -> list[Violation]:
    """The rules that hold even when Redis forgot its last seconds (power loss, failover)."""
    return _run(facts, [unfinished, attempts, counters, bills, leftovers])


def _run(facts: Facts, rules: list[Callable[[Facts], Iterator[Violation]]]) -> list[Violation]:
    return [violation for rule in rules for violation in rule(facts)]


def lost(facts: Facts) -> Iterator[Violation]:
    """G1: what was accepted is there."""
    for job_id in facts.accepted:
        if job_id not in facts.snapshot.jobs:
            yield Violation(rule="G1 lost", message=f"{job_id} was accepted and is gone")


def unfinished(facts: Facts) -> Iterator[Violation]:
    """G1: whatever is there has ended."""
    for job_id, job in facts.snapshot.jobs.items():
        if job.status not in FINAL:
            yield Violation(rule="G1 unfinished", message=f"{job_id} of {job.app} is {job.status}")


def innocents(facts: Facts) -> Iterator[Violation]:
    """G1 and G5: a job fails for a reason of its own, or after as many losses as it may have."""
    # A submission without an answer may have been accepted, under an id that nobody knows.
    unanswered = defaultdict[str, set[str]](set)
    for asked in facts.asked:
        if asked.status is None:
            unanswered[asked.app].update(asked.may_fail)
    for job_id, job in facts.snapshot.jobs.items():
        if job.status != "failed":
            continue
        asked = facts.accepted.get(job_id)
        allowed: set[str] = set(asked.may_fail) if asked else set(unanswered[job.app])
        began = asked.began if asked else 0.0
        ends = [look.at for look in facts.looks[job_id] if look.status in FINAL]
        end = min(ends, default=float("inf"))
        here = [fault for fault in facts.faults if fault.app in (None, job.app)]
        allowed.update(fault.ends_jobs for fault in here if fault.ends_jobs)
        losses = sum(fault.loses_replica and began <= fault.at <= end for fault in here)
        if losses >= job.max_attempts:
            allowed.add("worker_lost")
        if job.error not in allowed:
            message = f"{job_id} failed with {job.error} ({losses} losses), allowed {allowed or ''}"
            yield Violation(rule="G5 innocent failed", message=message)


def changed(facts: Facts) -> Iterator[Violation]:
    """G2: at most one result, for ever; and the same request draws the same bytes."""
    drawn = dict[tuple[str, str], tuple[str, ...]]()
    for job_id, looks in facts.looks.items():
        finals = sorted((look for look in looks if look.status in FINAL), key=lambda look: look.at)
        for look in looks:
            # Looks overlap: only one that began after the end was known must show it.
            if finals and look.began > finals[0].at and look.status != finals[0].status:
                message = f"{job_id} was {finals[0].status}, later {look.status}"
                yield Violation(rule="G2 state changed", message=message)
        results = {look.images for look in finals if look.images}
        if len(results) > 1:
            yield Violation(rule="G2 result changed", message=f"{job_id}: {results}")
        if results and any(look.status != "succeeded" and look.images for look in looks):
            yield Violation(rule="G2 result of no success", message=job_id)
        asked = facts.accepted.get(job_id)
        if asked and results:
            (first, *_) = results
            if drawn.setdefault((asked.app, asked.body), first) != first:
                message = f"{job_id} differs from an equal request"
                yield Violation(rule="G2 not reproducible", message=message)


def keys_(facts: Facts) -> Iterator[Violation]:
    """G3: the same key is the same job, and never another request's."""
    first = dict[tuple[str, str | None, str], Asked]()
    for asked in facts.asked:
        if asked.key is None or asked.job_id is None:
            continue
        known = first.setdefault((asked.app, asked.client, asked.key), asked)
        if known.job_id != asked.job_id:
            message = f"key {asked.key}: {known.job_id} and {asked.job_id}"
            yield Violation(rule="G3 two jobs", message=message)
        if known.body != asked.body:
            message = f"key {asked.key} was accepted with two bodies"
            yield Violation(rule="G3 two bodies", message=message)


def cancelled(facts: Facts) -> Iterator[Violation]:
    """G4: after an accepted cancel there is no result."""
    for cancel in facts.cancels:
        if cancel.status not in (200, 202):
            continue
        job = facts.snapshot.jobs.get(cancel.job_id)
        status = job.status if job else "gone"
        if status == "succeeded" or (cancel.status == 200 and status != "cancelled"):
            message = f"{cancel.job_id} was cancelled ({cancel.status}) and is {status}"
            yield Violation(rule="G4 cancelled", message=message)
        for look in facts.looks[cancel.job_id]:
            if look.began > cancel.at and (look.images or look.status == "succeeded"):
                message = f"{cancel.job_id} shows a result after its cancel"
                yield Violation(rule="G4 result after cancel", message=message)


def attempts(facts: Facts) -> Iterator[Violation]:
    """G5: no job is tried more often than it may (a hand-back allows one more)."""
    for job_id, job in facts.snapshot.jobs.items():
        if job.attempt > job.max_attempts:
            message = f"{job_id}: {job.attempt} attempts of {job.max_attempts}"
            yield Violation(rule="G5 attempts", message=message)


def answers(facts: Facts) -> Iterator[Violation]:
    """G7: whatever Redis does, a request gets an answer that says so: never an internal error."""
    for asked in facts.asked:
        if asked.problem and asked.problem.endswith(":internal_error") and not asked.job_id:
            message = f"{asked.status} {asked.problem} at {asked.at:.3f}"
            yield Violation(rule="G7 internal error", message=message)


def counters(facts: Facts) -> Iterator[Violation]:
    """G8: every end is counted, once."""
    counted = defaultdict[tuple[str, str], int](int)
    for job in facts.snapshot.jobs.values():
        if job.status in FINAL:
            counted[job.app, job.status] += 1
    apps = {job.app for job in facts.snapshot.jobs.values()} | set(facts.snapshot.counters)
    for app in sorted(apps):
        for status in FINAL:
            told = facts.snapshot.counters.get(app, {}).get(status, 0)
            if told != counted[app, status]:
                message = f"{app}: {told} counted as {status}, {counted[app, status]} are"
                yield Violation(rule="G8 counted", message=message)


def bills(facts: Facts) -> Iterator[Violation]:
    """G8: the usage of every day is exactly the sum over the jobs that ended on it."""
    sums = defaultdict[tuple[int, str], int](int)
    for job in facts.snapshot.jobs.values():
        if job.status in FINAL and job.ended is not None:
            for metric, amount in {**job.usage, f"jobs_{job.status}": 1}.items():
                for app in (job.app, ""):
                    sums[job.ended // DAY_MS, f"{job.client}|{app}|{metric}"] += amount
    told = {
        (day, name): amount
        for day, amounts in facts.snapshot.usage.items()
        for name, amount in amounts.items()
    }
    for day, name in sorted(sums.keys() | told.keys()):
        if (amount := told.get((day, name), 0)) != sums[day, name]:
            message = f"day {day}, {name}: {amount}, the jobs' sum is {sums[day, name]}"
            yield Violation(rule="G8 billed", message=message)
    for job_id, job in facts.snapshot.jobs.items():
        if job.status == "succeeded" and job.usage.get("images") != len(job.results):
            message = f"{job_id} has {len(job.results)} images and was billed {job.usage}"
            yield Violation(rule="G8 billed", message=message)


def owners(facts: Facts) -> Iterator[Violation]:
    """G9: nobody sees another client's job, gets at it, or has it become his own."""
    for job_id, looks in facts.looks.items():
        job = facts.snapshot.jobs.get(job_id)
        asked = facts.accepted.get(job_id)
        owner = job.client if job else asked.client if asked else None
        for look in looks:
            if owner is not None and look.client not in (None, owner):
                message = f"{look.client} saw {job_id} of {owner}"
                yield Violation(rule="G9 seen by another", message=message)
    for job_id, asked in facts.accepted.items():
        job = facts.snapshot.jobs.get(job_id)
        if job and asked.client is not None and job.client != asked.client:
            message = f"{job_id} of {asked.client} is {job.client}'s"
            yield Violation(rule="G9 another's job", message=message)
    for tried in facts.pried:
        # Not even that it exists: no 409, no 410. A server that is away says nothing of it.
        if tried.status is not None and tried.status != 404 and tried.status < 500:
            message = f"{tried.client}: {tried.what} at {tried.job_id} got {tried.status}"
            yield Violation(rule="G9 got at", message=message)


def leftovers(facts: Facts) -> Iterator[Violation]:
    """When all has ended nothing waits, nothing is leased, and all that is left will expire."""
    snapshot = facts.snapshot
    for name, sets in (("queue", snapshot.queued), ("leases", snapshot.leased)):
        for app, ids in sets.items():
            if ids:
                yield Violation(rule=f"leftover in {name}", message=f"{app}: {ids}")
    for name, count in snapshot.load.items():
        yield Violation(rule="leftover in counts", message=f"{name}: {count}")
    results = {key for job in snapshot.jobs.values() for key in job.results}
    for key in sorted(results - set(snapshot.blobs)):
        yield Violation(rule="G2 result missing", message=key)
    for key, ttl in snapshot.blobs.items():
        if ttl < 0 or (key not in results and ttl > UNCLAIMED_TTL):
            yield Violation(rule="orphan result", message=f"{key} lives for {ttl} s")
    for job_id, job in snapshot.jobs.items():
        if (job.status in FINAL) != (job.ttl >= 0):
            message = f"{job_id} is {job.status} and lives for {job.ttl} s"
            yield Violation(rule="job TTL", message=message)
