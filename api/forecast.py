"""When a replica gets to a job and is done with it, from what the store tells of an app. Pure.

The waiting jobs are dealt in their order to whichever replica has a free slot first, as replicas
will take them. What nobody can know is left out: jobs that are yet to come and go
before this one (a higher priority, a client with a smaller share), replicas that are yet to be
started beside those that are there, a wait for a free device.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from sdserve.apps import AppState, AppStatus, Backlog, LoadPace, LoadProgress, RunningWork
from sdserve.jobs import Job
from sdserve.pace import Line, Pace, Work

# From the wish for a replica until it begins: the autoscaling policy's look and Serve's start of an
# actor, with something free to place it on.
PLACEMENT_SECONDS = 1.0
# Of a start that was never measured, on CPUs (docs/performance.md): reading with the conversion of
# the weights, and all besides.
BYTES_PER_SECOND = 7e8
REST_SECONDS = 1.5
UNMEASURED_SECONDS = 5.0  # of a job, for Retry-After alone, until one has been measured


@dataclass(kw_only=True)
class _Replica:
    """What a replica does from a moment on. Jobs that run together share its time equally."""

    slots: int
    clock: float = 0.0  # the moment, seconds from now
    running: list[float] = field(default_factory=list)  # seconds of its time that each still needs

    @property
    def free_at(self) -> float:
        """When it can take a job, seconds from now."""
        if len(self.running) < self.slots:
            return self.clock
        return self.clock + min(self.running) * len(self.running)

    def take(self, seconds: float) -> None:
        """Begin another job of so many seconds, when it can."""
        if len(self.running) >= self.slots:
            first = min(self.running)
            self.clock += first * len(self.running)
            self.running.remove(first)
            self.running = [left - first for left in self.running]
        self.running.append(seconds)

    def end_of(self, seconds: float) -> float:
        """When a running job of so many seconds left ends, if nothing else begins."""
        return self.clock + sum(min(left, seconds) for left in self.running)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The app's replicas with the work they have, and how fast they are."""

    app: AppStatus
    backlog: Backlog
    pace: Pace  # the app's, or what its running jobs tell if none has finished yet
    queued: tuple[float | None, ...]  # seconds of each waiting job; None: not known

    @classmethod
    def of(cls, app: AppStatus) -> "Forecast | None":
        """None where the app was not asked for its backlog."""
        if app.backlog is None:
            return None
        pace = app.pace if app.pace.is_known else _pace_of(app.backlog.running)
        queued = tuple(
            pace.drawing_seconds(work) if work and pace.is_known else None
            for work in app.backlog.queued
        )
        return cls(app=app, backlog=app.backlog, pace=pace, queued=queued)

    def seconds_until_end(self, job: Job) -> float | None:
        """Until the result of a job is stored; None while nothing has been measured."""
        if not self.pace.is_known:
            return None
        work = Work.of(job.params)
        mean = self._mean(work)
        replicas, lost = self._replicas(mean)
        running = next((run for run in self.backlog.running if run.job_id == job.id), None)
        if running and running.owner in replicas:
            end = replicas[running.owner].end_of(self._left(running, mean))
        else:
            # Asked for this job the backlog knows its place best; else the job brings it.
            is_its = self.backlog.before == job.id
            position = (self.backlog.position if is_its else job.position) or 0
            ahead = [self._seconds(run.work, mean) for run in lost if run.job_id != job.id]
            ahead += [mean if known is None else known for known in self.queued[:position]]
            end = _deal(list(replicas.values()), ahead, self.pace.drawing_seconds(work))
            untold = max(position - len(self.queued), 0)
            end += untold * mean / len(replicas)
        return end + self.pace.file_seconds(work)

    def seconds_until_free(self) -> float:
        """Until a replica can take a job: what a full queue has to wait for."""
        mean = self._mean()
        replicas, _ = self._replicas(mean)
        return min(replica.free_at for replica in replicas.values())

    def _replicas(self, mean: float) -> tuple[dict[str, _Replica], list[RunningWork]]:
        """By id, with the jobs that run there; and the jobs whose replica is gone."""
        replicas = dict[str, _Replica]()
        for told in self.app.replicas:
            is_loading = told.state is AppState.LOADING
            clock = load_left(told.load, self.app) if is_loading else 0.0
            replicas[told.id] = _Replica(slots=told.slots, clock=clock)
        lost = list[RunningWork]()
        for run in self.backlog.running:
            if run.owner in replicas:
                replicas[run.owner].running.append(self._left(run, mean))
            else:
                lost.append(run)
        if not replicas:
            clock = PLACEMENT_SECONDS + load_left(None, self.app)
            replicas[""] = _Replica(slots=1, clock=clock)
        return replicas, lost

    def _mean(self, *own: Work) -> float:
        """Seconds of a job that nothing is known of: the mean of those that are."""
        if not self.pace.is_known:
            return UNMEASURED_SECONDS
        works = [*own, *(run.work for run in self.backlog.running)]
        known = [seconds for seconds in self.queued if seconds is not None]
        known += [self.pace.drawing_seconds(work) for work in works if work]
        return sum(known) / len(known) if known else UNMEASURED_SECONDS

    def _seconds(self, work: Work | None, mean: float, step: int = 0) -> float:
        return self.pace.drawing_seconds(work, step) if work and self.pace.is_known else mean

    def _left(self, run: RunningWork, mean: float) -> float:
        """Seconds of the replica's time, less what has passed since its last word."""
        return max(self._seconds(run.work, mean, run.step) - run.age, 0.0)


def load_left(load: LoadProgress | None, app: AppStatus) -> float:
    """Seconds until a replica of this app is ready; `load` is None before it has begun.

    While the file is being read, its own speed counts the more the further it is.
    """
    size = load.size if load else app.file_bytes or 0
    reading = _reading_seconds(app.load, size)
    rest = max(app.load.seconds - app.load.reading_seconds, 0.0) if app.load else REST_SECONDS
    if load is None:
        return reading + rest
    share = load.bytes / size if size else 0.0
    if share:
        reading = (1 - share) * reading + share * (load.reading_seconds / share)
    besides = load.seconds - load.reading_seconds
    return max(reading - load.reading_seconds, 0.0) + max(rest - besides, 0.0)


def _reading_seconds(last: LoadPace | None, size: int) -> float:
    """Seconds to read so many bytes, at the speed of the last start."""
    if last and last.size:
        return last.reading_seconds * size / last.size
    return size / BYTES_PER_SECOND


def _deal(replicas: Sequence[_Replica], ahead: Sequence[float], own: float) -> float:
    """When a job of `own` seconds ends that is dealt after those ahead of it."""
    free = [(replica.free_at, number) for number, replica in enumerate(replicas)]
    heapq.heapify(free)
    for seconds in ahead:
        _, number = free[0]
        replicas[number].take(seconds)
        heapq.heapreplace(free, (replicas[number].free_at, number))
    _, number = free[0]
    replicas[number].take(own)
    return replicas[number].end_of(own)


def _pace_of(running: Sequence[RunningWork]) -> Pace:
    """What the progress of running jobs tells: the seconds that their steps have taken so far."""
    step = Line()
    for run in running:
        if run.work and run.step:
            calls = run.work.calls * run.step / run.work.steps
            step = step.seen(run.work.row_megapixels, run.seconds / calls)
    return Pace(step=step)
