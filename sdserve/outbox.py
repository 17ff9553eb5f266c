"""The outbox of webhooks: events that have happened and are not delivered yet.

The script step that ends a job puts its event here (common.lua), so none is missed. A sweep takes
due events and asks for their delivery; whoever delivers begins a try and settles it. Each step
leaves the event due again later, so whoever is lost in between loses nothing.

Clients do not wait for each other's receivers: they take turns, and who has kept a worker waiting
rests for as long.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar

from sdserve import keys
from sdserve.operations import Argument, Operation
from sdserve.operations.wire import milliseconds, time_of

SPAN = timedelta(days=1)  # from the event, or its replay, to the last try
DEAD_TTL = timedelta(days=7)
DEAD_LIMIT = 10_000  # events; the oldest go first
DEAD_LIMIT_OF_CLIENT = 1_000
REST = timedelta(seconds=10)  # of a receiver that hung once
LONGEST_REST = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class TakeHooks(Operation[list[str]]):
    """Take due events, clients in turn, to ask for their delivery; due again after `patience`."""

    script: ClassVar[str] = "take_hooks"
    limit: int
    patience: timedelta

    @property
    def keys(self) -> list[str]:
        return [keys.HOOKS]

    @property
    def arguments(self) -> list[Argument]:
        return [self.limit, milliseconds(self.patience)]

    def read(self, reply: Any) -> list[str]:
        return [event.decode() for event in reply]


@dataclass(frozen=True, kw_only=True)
class HookTry:
    """One try to deliver an event."""

    event: str  # KIND_ID_STATUS: the same in each try, so that receivers can tell repeats
    url: str
    subject: Mapping[str, str]  # the hash of what the event is about, as it was then
    created_at: datetime
    number: int  # of all tries; proves to `SettleHook` that no later one has begun
    since_start: int  # 1 = first try, or first after a replay


@dataclass(frozen=True, kw_only=True)
class BeginHook(Operation[HookTry | None]):
    """Begin a try to deliver an event. None: it is not to be tried now."""

    script: ClassVar[str] = "begin_hook"
    event: str
    busy: timedelta  # after which another may try it

    @property
    def keys(self) -> list[str]:
        return [keys.HOOK + self.event]

    @property
    def arguments(self) -> list[Argument]:
        return [self.event, milliseconds(self.busy), keys.HOOK_REST]

    def read(self, reply: Any) -> HookTry | None:
        if reply is None:
            return None
        url, subject, created, number, since_start = reply
        return HookTry(
            event=self.event,
            url=url.decode(),
            subject=json.loads(subject),
            created_at=time_of(created),
            number=number,
            since_start=since_start,
        )


class HookOutcome(StrEnum):
    """How a try went."""

    DELIVERED = "delivered"
    RETRY = "retry"
    DEAD = "dead"  # it will never be delivered


class HookState(StrEnum):
    """What became of an event by a try."""

    DELIVERED = "delivered"
    WAITING = "waiting"  # for its next try
    DEAD = "dead"  # given up; it can be replayed
    LATE = "late"  # another try has begun or ended it: this one changed nothing


@dataclass(frozen=True, kw_only=True)
class SettleHook(Operation[HookState]):
    """Note how a try went."""

    script: ClassVar[str] = "settle_hook"
    event: str
    number: int  # of the try
    outcome: HookOutcome
    delay: timedelta = timedelta(0)  # before the next try
    reason: str = ""  # why it is not delivered
    is_slow: bool = False  # the receiver hung: it rests before any other event is tried
    rest: timedelta = timedelta(0)  # of the client, before any other event of it is tried

    @property
    def keys(self) -> list[str]:
        return [keys.HOOK + self.event, keys.DEAD_HOOKS]

    @property
    def arguments(self) -> list[Argument]:
        return [
            self.event, self.number, self.outcome, milliseconds(self.delay), self.reason,
            milliseconds(SPAN), milliseconds(DEAD_TTL), DEAD_LIMIT, DEAD_LIMIT_OF_CLIENT,
            keys.HOOK_REST, milliseconds(REST) if self.is_slow else 0,
            milliseconds(LONGEST_REST), milliseconds(self.rest), keys.HOOK,
        ]  # fmt: skip

    def read(self, reply: Any) -> HookState:
        return HookState(reply.decode())


@dataclass(frozen=True, kw_only=True)
class HookView:
    """An undelivered event."""

    event: str
    url: str
    at: datetime  # of the next look at it; when it was given up
    created_at: datetime
    tries: int
    error: str | None  # of the last try


@dataclass(frozen=True, kw_only=True)
class ViewHooks(Operation[list[HookView]]):
    """The events that wait (the soonest due first) or that were given up (the oldest first)."""

    script: ClassVar[str] = "view_hooks"
    dead: bool
    limit: int

    @property
    def keys(self) -> list[str]:
        return [keys.DEAD_HOOKS if self.dead else keys.HOOKS]

    @property
    def arguments(self) -> list[Argument]:
        return [keys.HOOK, self.limit]

    def read(self, reply: Any) -> list[HookView]:
        return [
            HookView(
                event=event.decode(),
                url=url.decode(),
                at=time_of(at),
                created_at=time_of(created),
                tries=int(tries),
                error=error.decode() if error else None,
            )
            for event, at, url, created, tries, error in reply
        ]


@dataclass(frozen=True, kw_only=True)
class ReplayHook(Operation[bool]):
    """Try an undelivered event now, for another day. False: there is no such event."""

    script: ClassVar[str] = "replay_hook"
    event: str

    @property
    def keys(self) -> list[str]:
        return [keys.HOOK + self.event, keys.DEAD_HOOKS]

    @property
    def arguments(self) -> list[Argument]:
        return [self.event, keys.HOOK_REST]

    def read(self, reply: Any) -> bool:
        return reply == 1
