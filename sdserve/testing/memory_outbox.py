"""The outbox of webhooks in memory: what its scripts do, said once more in Python."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any
from urllib.parse import urlsplit

from sdserve.outbox import (
    DEAD_LIMIT,
    DEAD_LIMIT_OF_CLIENT,
    DEAD_TTL,
    LONGEST_REST,
    REST,
    SPAN,
    BeginHook,
    HookOutcome,
    HookState,
    HookTry,
    HookView,
    ReplayHook,
    SettleHook,
    TakeHooks,
    ViewHooks,
)


@dataclass(kw_only=True)
class _Event:
    url: str
    subject: Mapping[str, str]
    created: float
    since: float  # of its day of tries
    due: float  # of its next try
    look: float  # of the next look of the sweep
    tries: int = 0
    base: int = 0  # tries before the last replay
    busy: float = 0
    error: str | None = None

    @property
    def client(self) -> str:
        return self.subject["client"]

    @property
    def receiver(self) -> str:
        """Of this client: another's rests by itself."""
        parts = urlsplit(self.url)
        return f"{self.client} {parts.scheme}://{parts.netloc}"


class MemoryOutbox:
    """Not safe to share between threads by itself. Times are seconds since 1970."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Event] = {}
        self._dead: dict[str, tuple[_Event, float]] = {}  # event -> when it was given up
        self._rests: dict[str, tuple[int, float]] = {}  # receiver -> failures, until
        self._client_rests: dict[str, float] = {}  # client -> until
        self._turns: dict[str, tuple[float, int]] = {}  # client -> its last turn, and how many'th
        self.operations: dict[str, Callable[[Any, float], Any]] = {
            "take_hooks": self._take,
            "begin_hook": self._begin,
            "settle_hook": self._settle,
            "view_hooks": self._view,
            "replay_hook": self._replay,
        }

    def tell(
        self, kind: str, name: str, status: str, url: str, subject: Mapping[str, str], now: float
    ) -> None:
        """Something has ended that has a webhook."""
        event = f"{kind}_{name}_{status}"
        self._waiting[event] = _Event(
            url=url, subject=subject, created=now, since=now, due=now, look=now
        )

    def waiting_of(self, client: str) -> int:
        """How many events of a client are not delivered and not given up."""
        return sum(event.client == client for event in self._waiting.values())

    def _take(self, op: TakeHooks, now: float) -> list[str]:
        due = defaultdict[str, list[str]](list)
        for event in self._in_order():
            if self._waiting[event].look <= now:
                due[self._waiting[event].client].append(event)
        clients = sorted(
            due,
            key=lambda client: (
                max(self._turn(client)[0], self._waiting[due[client][0]].look),
                self._turn(client)[1],
            ),
        )[: op.limit]  # fmt: skip
        turns = zip_longest(*(due[client] for client in clients))
        taken = [event for turn in turns for event in turn if event is not None][: op.limit]
        for event in taken:
            self._waiting[event].look = now + op.patience.total_seconds()
        number = 1 + max((each for _, each in self._turns.values()), default=0)
        self._turns.update(dict.fromkeys(clients, (now, number)))
        return taken

    def _turn(self, client: str) -> tuple[float, int]:
        return self._turns.get(client, (0.0, 0))

    def _begin(self, op: BeginHook, now: float) -> HookTry | None:
        held = self._waiting.get(op.event)
        if held is None or held.busy > now or held.due > now:
            return None
        _, rests = self._rests.get(held.receiver, (0, 0.0))
        rests = max(rests, self._client_rests.get(held.client, 0.0))
        if rests > now:
            held.look = rests
            return None
        held.tries += 1
        held.busy = held.look = now + op.busy.total_seconds()
        return HookTry(
            event=op.event,
            url=held.url,
            subject=held.subject,
            created_at=datetime.fromtimestamp(held.created, UTC),
            number=held.tries,
            since_start=held.tries - held.base,
        )

    def _settle(self, op: SettleHook, now: float) -> HookState:
        self._forget(now)
        held = self._waiting.get(op.event) or self._dead.get(op.event, (None, 0.0))[0]
        if held is None:
            return HookState.LATE
        if op.rest:
            self._client_rests[held.client] = now + op.rest.total_seconds()
        self._note_rest(held.receiver, now, is_slow=op.is_slow)
        if op.outcome is HookOutcome.DELIVERED:
            self._waiting.pop(op.event, None)
            self._dead.pop(op.event, None)
            return HookState.DELIVERED
        if held.tries != op.number or op.event not in self._waiting:
            return HookState.LATE
        held.busy, held.error = 0, op.reason
        last = held.since + SPAN.total_seconds()
        if op.outcome is HookOutcome.RETRY and now < last:
            held.due = held.look = min(now + op.delay.total_seconds(), last)
            return HookState.WAITING
        del self._waiting[op.event]
        self._dead[op.event] = (held, now)
        own = {name: dead for name, dead in self._dead.items() if dead[0].client == held.client}
        for some, limit in ((own, DEAD_LIMIT_OF_CLIENT), (self._dead, DEAD_LIMIT)):
            for old in sorted(some, key=lambda event: (some[event][1], event))[:-limit]:
                del self._dead[old]
        return HookState.DEAD

    def _view(self, op: ViewHooks, now: float) -> list[HookView]:
        self._forget(now)
        if op.dead:
            found = [(at, event, held) for event, (held, at) in self._dead.items()]
        else:
            found = [(held.look, event, held) for event, held in self._waiting.items()]
        found.sort(key=lambda item: item[:2])
        return [
            HookView(
                event=event,
                url=held.url,
                at=datetime.fromtimestamp(at, UTC),
                created_at=datetime.fromtimestamp(held.created, UTC),
                tries=held.tries,
                error=held.error,
            )
            for at, event, held in found[: op.limit]
        ]

    def _replay(self, op: ReplayHook, now: float) -> bool:
        self._forget(now)
        held = self._waiting.get(op.event) or self._dead.pop(op.event, (None, 0.0))[0]
        if held is None:
            return False
        held.since = held.due = held.look = now
        held.base = held.tries
        self._rests.pop(held.receiver, None)
        self._client_rests.pop(held.client, None)
        self._waiting[op.event] = held
        return True

    def _in_order(self) -> list[str]:
        return sorted(self._waiting, key=lambda event: (self._waiting[event].look, event))

    def _forget(self, now: float) -> None:
        """What was given up long ago."""
        until = now - DEAD_TTL.total_seconds()
        self._dead = {event: held for event, held in self._dead.items() if held[1] > until}

    def _note_rest(self, receiver: str, now: float, *, is_slow: bool) -> None:
        failures, rests = self._rests.pop(receiver, (0, 0.0))
        if not is_slow:
            return
        if rests + LONGEST_REST.total_seconds() <= now:  # it has not hung for long
            failures = 0
        span = min(LONGEST_REST, REST * 2 ** min(failures, 30)).total_seconds()
        self._rests[receiver] = (failures + 1, now + span)
