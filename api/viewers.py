"""Those who watch jobs: what each has to be shown next, and one look for all of them.

A message of Redis says which job looks different; it is looked at once, for all its viewers and
together with all other jobs that changed meanwhile. So a look takes as long as a round trip, with
any number of viewers, and what changes faster than that, or than a viewer reads, is skipped: the
newest state is shown. Looks come one after the other, so a state never follows a newer one.
"""

import asyncio
import logging
from base64 import b64encode
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import islice
from typing import Any

from api.schemas import JobResponse, PreviewBody
from sdserve.apps import AppStatus
from sdserve.async_store import AsyncJobStore
from sdserve.errors import SdServeError, StoreUnavailableError
from sdserve.jobs import Job, JobStatus, Preview
from sdserve.news import Change, News
from sdserve.operations import (
    END_OF_QUEUE,
    Operation,
    ViewApp,
    ViewJob,
    ViewPlaces,
    ViewPreview,
    Watch,
)

log = logging.getLogger(__name__)

# Seconds between two looks at a queue: its jobs' places change with every claim of any of them.
QUEUE_INTERVAL = 0.25
# Seconds between looks at what changes by the clock alone: a replica that is gone without a word, a
# GPU that is waited for, a wish for previews that is about to run out.
CLOCK_INTERVAL = 5.0
WISH = timedelta(seconds=15)
RETRY_INTERVAL = 0.5  # seconds
BATCH = 200  # jobs in one round trip
AWAY = "Redis does not answer: this goes on when it does"


@dataclass(frozen=True, kw_only=True)
class Sight:
    """A job as it is shown."""

    version: int  # of the job
    status: JobStatus
    text: str  # JobResponse, JSON


class Viewer:
    """One who watches a job: what is new for him, each kind once, the newest."""

    def __init__(self, *, wants_previews: bool) -> None:
        self.wants_previews = wants_previews
        self.is_over = False  # nothing more will come
        self._sight: Sight | None = None
        self._preview: str | None = None
        self._last_preview: str | None = None
        self._trouble: str | None = None
        self._has_seen = False
        self._news = asyncio.Event()

    async def wait(self, seconds: float) -> bool:
        """Whether there is something new within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    def take(self) -> tuple[str | None, str | None, Sight | None]:
        """What is new: trouble in words, a PreviewBody in JSON, the job."""
        taken = self._trouble, self._preview, self._sight
        self._trouble = self._preview = self._sight = None
        self._news.clear()
        return taken

    def show(self, sight: Sight, *, is_new: bool) -> None:
        """Show the job, if it looks different or this viewer has not seen it yet."""
        if is_new or not self._has_seen:
            self._has_seen = True
            self._sight = sight
            self._news.set()

    def show_preview(self, text: str) -> None:
        """Show a preview, if it is another than the last: two looks may find the same."""
        if text != self._last_preview:
            self._preview = self._last_preview = text
            self._news.set()

    def tell(self, trouble: str) -> None:
        self._trouble = trouble
        self._news.set()

    def end(self) -> None:
        self.is_over = True
        self._news.set()


@dataclass(kw_only=True)
class _Watched:
    """A job that somebody watches."""

    id: str
    app: str
    viewers: set[Viewer] = field(default_factory=set)
    job: Job | None = None  # as it was seen last
    text: str = ""  # as it was shown last

    @property
    def wants_previews(self) -> bool:
        return any(viewer.wants_previews for viewer in self.viewers)


class Viewers:
    """All who watch jobs in this process."""

    def __init__(self, store: AsyncJobStore) -> None:
        self._store = store
        self._watched: dict[str, _Watched] = {}
        self._queued: defaultdict[str, set[str]] = defaultdict(set)  # app -> jobs that wait
        # What has to be looked at.
        self._jobs = set[str]()
        self._previews = set[str]()
        self._wishes = set[str]()
        self._queues = set[str]()
        self._timers: dict[str, asyncio.TimerHandle] = {}  # app -> until then its queue rests
        self._rested = set[str]()  # apps whose queue is to be looked at then
        self._due = asyncio.Event()
        self._stopped = False

    @contextmanager
    def open(self, job: Job, *, wants_previews: bool) -> Generator[Viewer]:
        """Watch a job while this is entered."""
        viewer = Viewer(wants_previews=wants_previews)
        if self._stopped:
            viewer.end()
        watched = self._watched.setdefault(job.id, _Watched(id=job.id, app=job.app))
        watched.viewers.add(viewer)
        # Looked at again: it may have changed since `job` was seen, and nobody heard of it.
        self._jobs.add(job.id)
        if wants_previews:
            self._wishes.add(job.id)
            self._previews.add(job.id)
        self._due.set()
        try:
            yield viewer
        finally:
            watched.viewers.discard(viewer)
            if not watched.viewers:
                self._forget(watched)

    def hear(self, news: News) -> None:
        """Something looks different."""
        if news.change is Change.APP:
            self._look_at_queue_soon(news.app)
        elif watched := self._watched.get(news.job_id):
            if news.change is not Change.PREVIEW:
                self._jobs.add(news.job_id)
                self._due.set()
            elif watched.wants_previews:
                self._previews.add(news.job_id)
                self._due.set()

    def look_again(self) -> None:
        """Messages may have been missed: look at all jobs that are watched."""
        self._jobs.update(self._watched)
        self._due.set()

    def tell(self, trouble: str) -> None:
        """Say to all that they see nothing new for now."""
        for watched in self._watched.values():
            for viewer in watched.viewers:
                viewer.tell(trouble)

    def stop(self) -> None:
        """End all watching."""
        self._stopped = True
        for timer in self._timers.values():
            timer.cancel()
        for watched in self._watched.values():
            for viewer in watched.viewers:
                viewer.end()
        self._due.set()

    async def run(self) -> None:
        """Look at what changes, until `stop`."""
        clock = asyncio.create_task(self._follow_clock(), name="viewers' clock")
        try:
            while not self._stopped:
                await self._due.wait()
                self._due.clear()
                try:
                    await self._look()
                except StoreUnavailableError as error:
                    log.warning("nothing to show now: %s", error)
                    self.tell(AWAY)
                    await asyncio.sleep(RETRY_INTERVAL)
                    self.look_again()
                except Exception:
                    # Without this task every stream would be silent: whatever it was, go on.
                    log.exception("a look at what is watched failed")
                    await asyncio.sleep(RETRY_INTERVAL)
                    self.look_again()
        finally:
            clock.cancel()

    # --- looking -----------------------------------------------------------------------------

    async def _look(self) -> None:
        jobs, self._jobs = self._jobs, set()
        previews, self._previews = self._previews, set()
        wishes, self._wishes = self._wishes, set()
        queues, self._queues = self._queues, set()
        for app in queues:
            await self._look_at_queue(app)
        for some in in_parts(jobs):
            await self._look_at_jobs(some)
        for some in in_parts(previews):
            await self._look_at_previews(some)
        for some in in_parts(wishes & self._watched.keys()):
            outcomes = await self._store.run_all([Watch(job_id=each, span=WISH) for each in some])
            for refusal in outcomes:
                if isinstance(refusal, SdServeError):  # a full store: the jobs go on, unseen
                    log.warning("no previews now: %s", refusal)
                    break

    async def _look_at_jobs(self, ids: Sequence[str]) -> None:
        ids = [job_id for job_id in ids if job_id in self._watched]
        apps = sorted({self._watched[job_id].app for job_id in ids})
        looks: list[Operation[Any]] = [ViewJob(job_id=job_id) for job_id in ids]
        looks += [ViewApp(app=app, before=END_OF_QUEUE) for app in apps]
        outcomes = await self._store.run_all(looks)
        statuses: dict[str, AppStatus] = dict(zip(apps, outcomes[len(ids) :], strict=True))
        for job_id, found in zip(ids, outcomes, strict=False):
            watched = self._watched.get(job_id)
            if watched is None:  # nobody watches it any more
                continue
            if isinstance(found, SdServeError):  # it is gone: its record has expired
                for viewer in watched.viewers:
                    viewer.tell(str(found))
                    viewer.end()
                continue
            self._show(watched, found, statuses[watched.app])

    async def _look_at_queue(self, app: str) -> None:
        """Its jobs themselves have not changed: only their places, and what the app is doing."""
        parts = list(in_parts(self._queued[app]))
        looks: list[Operation[Any]] = [ViewApp(app=app, before=END_OF_QUEUE)]
        looks += [ViewPlaces(app=app, job_ids=part) for part in parts]
        status, *places = await self._store.run_all(looks)
        for part, found in zip(parts, places, strict=True):
            for job_id, place in zip(part, found, strict=True):
                watched = self._watched.get(job_id)
                if watched is None or watched.job is None:
                    continue
                if place.version != watched.job.version:
                    self._jobs.add(job_id)
                    self._due.set()
                else:
                    self._show(watched, replace(watched.job, position=place.position), status)
            await asyncio.sleep(0)  # others are served meanwhile

    async def _look_at_previews(self, ids: Sequence[str]) -> None:
        found: list[Preview | SdServeError | None]
        found = await self._store.run_all([ViewPreview(job_id=job_id) for job_id in ids])
        for job_id, preview in zip(ids, found, strict=True):
            watched = self._watched.get(job_id)
            if watched is None or watched.job is None or not isinstance(preview, Preview):
                continue
            text = PreviewBody(
                step=preview.step,
                steps=watched.job.params.total_steps,
                number=preview.number,
                image=f"data:image/webp;base64,{b64encode(preview.image).decode()}",
            ).model_dump_json()
            for viewer in watched.viewers:
                if viewer.wants_previews:
                    viewer.show_preview(text)

    def _show(self, watched: _Watched, job: Job, status: AppStatus) -> None:
        body = JobResponse.of(job, None if job.status.is_final else status, [])
        if body.result:
            body.result.images = None  # no image travels here, not even the place of one
        text = body.model_dump_json()
        sight = Sight(version=job.version, status=job.status, text=text)
        for viewer in watched.viewers:
            viewer.show(sight, is_new=text != watched.text)
        watched.job, watched.text = job, text
        if job.status is JobStatus.QUEUED:
            self._queued[job.app].add(job.id)
        else:
            self._queued[job.app].discard(job.id)

    def _forget(self, watched: _Watched) -> None:
        self._watched.pop(watched.id, None)
        self._queued[watched.app].discard(watched.id)
        if not self._queued[watched.app]:
            del self._queued[watched.app]

    # --- when ----------------------------------------------------------------------------------

    def _look_at_queue_soon(self, app: str) -> None:
        """At once, unless it was looked at a moment ago; then once for all that happens in it."""
        if app in self._timers:
            self._rested.add(app)
        elif self._queued.get(app):
            self._queues.add(app)
            self._due.set()
            later = asyncio.get_running_loop().call_later
            self._timers[app] = later(QUEUE_INTERVAL, self._end_rest, app)

    def _end_rest(self, app: str) -> None:
        del self._timers[app]
        if app in self._rested:
            self._rested.discard(app)
            self._look_at_queue_soon(app)

    async def _follow_clock(self) -> None:
        while not self._stopped:
            await asyncio.sleep(CLOCK_INTERVAL)
            for app in list(self._queued):
                self._look_at_queue_soon(app)
            self._wishes.update(
                watched.id for watched in self._watched.values() if watched.wants_previews
            )
            if self._wishes:
                self._due.set()


def in_parts(ids: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Parts that do not make others wait for long: neither Redis nor this process."""
    rest = iter(list(ids))
    while part := tuple(islice(rest, BATCH)):
        yield part
