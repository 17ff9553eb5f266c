"""An app as the store has it: a look at it, and the end of what waits for it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, ClassVar

from sdserve import keys
from sdserve.apps import (
    AppOutlook,
    AppSpec,
    AppState,
    AppStatus,
    Backlog,
    LoadPace,
    LoadProgress,
    ReplicaPresence,
    RunningWork,
)
from sdserve.jobs import JobFailure
from sdserve.operations.operation import Argument, Operation
from sdserve.operations.wire import texts
from sdserve.pace import Line, Pace, Work

PACE_FIELDS = ("step", "picture", "file")  # of Pace, and with `pace_` before them of keys.APP
END_OF_QUEUE = "end"  # no job's id
TOLD = 100  # jobs told one by one, of those that wait and of those that run


@dataclass(frozen=True, kw_only=True)
class Drain(Operation[int]):
    """Fail the queued jobs of an app with one reason; `broken` also refuses new ones.

    At most `limit` jobs in one call, for it blocks the server: `RedisJobStore.drain` goes on.
    """

    script: ClassVar[str] = "drain"
    app: str
    failure: JobFailure
    job_ttl: timedelta
    broken: bool
    spec: AppSpec | None = None  # only if the app is still deployed as this
    limit: int = 1000

    @property
    def keys(self) -> list[str]:
        app = self.app
        return [keys.QUEUE + app, keys.APP + app, keys.APPS, keys.LOAD, keys.SHARES + app]

    @property
    def arguments(self) -> list[Argument]:
        return [
            keys.JOB, self.failure.code, self.failure.message, int(self.job_ttl.total_seconds()),
            keys.CHANNEL + self.app, int(self.broken), self.app,
            self.spec.to_json() if self.spec else "", self.limit,
        ]  # fmt: skip

    def read(self, reply: Any) -> int:
        return int(reply)


@dataclass(frozen=True, kw_only=True)
class ViewApp(Operation[AppStatus]):
    """An app at one moment; with the work before a job, if that is asked for."""

    script: ClassVar[str] = "view_app"
    app: str
    before: str | None = None  # a job's id, or END_OF_QUEUE
    limit: int = TOLD

    @property
    def keys(self) -> list[str]:
        return []  # the script makes them of the app's name

    @property
    def arguments(self) -> list[Argument]:
        return [self.app, self.before or "", self.limit]

    def read(self, reply: Any) -> AppStatus:
        return app_of(reply, before=self.before)


def app_of(reply: Any, *, before: str | None) -> AppStatus:
    """The app as `app_now` of common.lua tells it."""
    now, queued, running, presences, notes, work = reply
    broken, wish, device, file_bytes, load, *lines = texts(notes)
    replicas = sorted((_presence(text, now) for text in presences), key=lambda told: told.id)
    return AppStatus(
        state=app_state(replicas, queued + running, broken=broken is not None),
        phase=replicas[0].phase if replicas else None,
        queued=queued,
        running=running,
        replicas=tuple(replicas),
        broken_reason=broken,
        pace=Pace(**dict(zip(PACE_FIELDS, map(Line.from_text, lines), strict=True))),
        load=LoadPace(**json.loads(load)) if load else None,
        file_bytes=int(file_bytes) if file_bytes else None,
        wished=wish is not None and float(wish) > now,
        device=device or "GPU",
        backlog=_backlog(before, work) if before else None,
    )


@dataclass(frozen=True, kw_only=True)
class ViewOutlooks(Operation[list[AppOutlook]]):
    """What many apps can do, in one look: of a thousand nearly all are cold, which costs little."""

    script: ClassVar[str] = "view_outlooks"
    apps: tuple[str, ...]

    @property
    def keys(self) -> list[str]:
        return []

    @property
    def arguments(self) -> list[Argument]:
        return [keys.QUEUE, keys.LEASE, keys.REPLICAS, keys.APP, *self.apps]

    def read(self, reply: Any) -> list[AppOutlook]:
        now, told = reply
        outlooks = [AppOutlook()] * len(self.apps)
        for number, live, work, broken in told:
            replicas = [_presence(text, now) for text in live]
            outlooks[number - 1] = app_outlook(replicas, work, broken.decode() if broken else None)
        return outlooks


def app_outlook(
    replicas: Sequence[ReplicaPresence], work: int, broken_reason: str | None
) -> AppOutlook:
    """What an app with these live replicas and so many unfinished jobs can do."""
    first = min(replicas, key=lambda told: told.id, default=None)
    return AppOutlook(
        state=app_state(replicas, work, broken=broken_reason is not None),
        phase=first.phase if first else None,
        broken_reason=broken_reason,
    )


def app_state(replicas: Sequence[ReplicaPresence], work: int, *, broken: bool) -> AppState:
    """What an app with these live replicas and so many unfinished jobs can do."""
    slots = sum(replica.slots for replica in replicas if replica.state is not AppState.LOADING)
    if broken:
        return AppState.BROKEN
    if not replicas:
        return AppState.COLD
    if slots == 0:
        return AppState.LOADING
    return AppState.BUSY if work >= slots else AppState.READY


def _presence(text: bytes, now: int) -> ReplicaPresence:
    """As a replica told it; how long it has been loading is counted on until now."""
    fields: dict[str, Any] = json.loads(text)
    told, load, _ = fields.pop("told"), fields.pop("load"), fields.pop("until")
    state = AppState(fields.pop("state"))
    presence = ReplicaPresence(state=state, **fields)
    if load is None:
        return presence
    return replace(presence, load=LoadProgress(**load).later((now - told) / 1000))


def _backlog(before: str, reply: Any) -> Backlog:
    position, queued, running = reply
    works = [Work.from_text(text) if text else None for text in texts(queued)]
    return Backlog(
        before=before,
        position=position,
        queued=tuple(works),
        running=tuple(
            RunningWork(
                job_id=job_id.decode(),
                owner=owner.decode(),
                work=Work.from_text(work.decode()) if work else None,
                step=int(step),
                seconds=seconds / 1000,
                age=age / 1000,
            )
            for job_id, owner, work, step, seconds, age in running
        ),
    )
