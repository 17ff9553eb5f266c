"""Keeps a replica's presence and its jobs' leases alive.

On a thread apart from the GPU loop: no denoising step, however slow, can miss a heartbeat.
"""

import logging
import threading
import time
from dataclasses import replace
from datetime import timedelta

from sdserve.apps import AppState, LoadProgress, ReplicaPresence
from sdserve.errors import StoreUnavailableError
from sdserve.jobs import ClaimedJob
from sdserve.operations import Beat, JobProgress, Pulse
from sdserve.store import RedisJobStore

log = logging.getLogger(__name__)

MIN_INTERVAL = 0.2  # seconds; progress is sent at most so often

# One replica may hold two claims of a job: the dead one that it has not noticed yet, and its own
# new one. They must not be mistaken for each other.
Claimed = tuple[str, int]  # job id, fence


class Heartbeat:
    """The voice of one replica in the job store."""

    def __init__(
        self,
        store: RedisJobStore,
        app: str,
        presence: ReplicaPresence,
        *,
        lease: timedelta,
    ) -> None:
        self._store = store
        self._app = app
        self._presence = presence
        self._lease = lease
        self._jobs: dict[Claimed, JobProgress] = {}
        self._pulses: dict[Claimed, Pulse] = {}
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def announce(self, state: AppState, phase: str, load: LoadProgress | None = None) -> None:
        """Say what the replica is doing, and how far its start is while it loads."""
        with self._lock:
            self._presence = replace(self._presence, state=state, phase=phase, load=load)
        self._changed.set()

    def offer(self, slots: int) -> None:
        """Say how many jobs the replica runs together."""
        with self._lock:
            self._presence = replace(self._presence, slots=slots)
        self._changed.set()

    def hold(self, job: ClaimedJob) -> None:
        """Keep this job's lease from now on."""
        with self._lock:
            self._jobs[job.id, job.fence] = _progress(job, 0, "encoding the prompt")
        self._changed.set()

    def progress(self, job: ClaimedJob, *, step: int, phase: str) -> None:
        """Note how far a job is, if it is still held."""
        with self._lock:
            if (job.id, job.fence) in self._jobs:
                self._jobs[job.id, job.fence] = _progress(job, step, phase)
        self._changed.set()

    @property
    def held(self) -> list[Claimed]:
        """The claims whose leases are kept: of jobs that run or whose end is being stored."""
        with self._lock:
            return list(self._jobs)

    def pulse(self, job: ClaimedJob) -> Pulse:
        """What the last heartbeat learnt about this job."""
        return self._pulses.get((job.id, job.fence), Pulse.OK)

    def drop(self, job: ClaimedJob) -> None:
        """Let go of a job that has ended."""
        with self._lock:
            self._jobs.pop((job.id, job.fence), None)
            self._pulses.pop((job.id, job.fence), None)

    def stop(self) -> None:
        """Stop beating and leave the app: nobody counts on this replica's slots any more."""
        self._fall_silent()
        self._store.leave(self._app, self._presence.id)

    def surrender(self) -> None:
        """As `stop`, and end the leases now: the jobs run elsewhere, one attempt is lost."""
        self._fall_silent()
        self._beat(lease=timedelta(0))
        self._store.leave(self._app, self._presence.id)

    def _fall_silent(self) -> None:
        self._stopped.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        interval = self._lease.total_seconds() / 3
        while not self._stopped.is_set():
            self._changed.clear()
            try:
                self._beat(self._lease)
            except StoreUnavailableError as error:
                log.warning("heartbeat failed: %s", error)
                self._changed.set()  # again at once, after the pause below
            except Exception:
                # A replica without a heartbeat loses its jobs: whatever this was, go on beating.
                log.exception("heartbeat failed")
            time.sleep(MIN_INTERVAL)
            self._changed.wait(interval)

    def _beat(self, lease: timedelta) -> None:
        with self._lock:
            presence, jobs = self._presence, list(self._jobs.values())
        beat = Beat(app=self._app, presence=presence, lease=lease, jobs=jobs)
        pulses = self._store.run(beat)
        with self._lock:
            for job, pulse in zip(jobs, pulses, strict=True):
                if (job.job_id, job.fence) in self._jobs:
                    self._pulses[job.job_id, job.fence] = pulse


def _progress(job: ClaimedJob, step: int, phase: str) -> JobProgress:
    return JobProgress(job_id=job.id, fence=job.fence, step=step, phase=phase)
