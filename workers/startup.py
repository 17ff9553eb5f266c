"""A replica's start: loads the model, and keeps count of starts that fail."""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sdserve.apps import AppSpec, AppState, LoadPace, LoadProgress
from sdserve.errors import CheckpointError
from sdserve.jobs import JobFailure
from sdserve.operations import Drain
from sdserve.store import RedisJobStore
from workers.heartbeat import Heartbeat
from workers.patience import patiently
from workers.replica_settings import ReplicaSettings
from workers.watchdog import Watchdog

if TYPE_CHECKING:  # imported by load_engine, after the file has begun to be read
    from workers.engine import DiffusionEngine

log = logging.getLogger(__name__)

MAX_LOAD_FAILURES = 3  # starts in a row; then the app is broken rather than started for ever


class Startup:
    """Of one replica. A checkpoint that cannot be loaded breaks its app; a redeploy heals."""

    def __init__(
        self,
        spec: AppSpec,
        settings: ReplicaSettings,
        store: RedisJobStore,
        heart: Heartbeat,
        watchdog: Watchdog,
    ) -> None:
        self._spec = spec
        self._settings = settings
        self._store = store
        self._heart = heart
        self._watchdog = watchdog
        self._born = time.monotonic()
        self._size = sum(file.size for file in spec.checkpoint.files)
        self._share = 0.0  # of all reading
        self._reading_since: float | None = None
        self._reading_seconds = 0.0

    def load(
        self, load_engine: Callable[..., "DiffusionEngine"], *, device: str, born: float
    ) -> "DiffusionEngine | None":
        """Build the engine; None when the app is broken and the replica has nothing to do.

        Raises:
            SdServeError: not this time; whoever ends the replica calls `failed`.
        """
        spec = self._spec
        self._born = born
        self._on_phase("starting a process")
        broken = patiently(lambda: self._store.app_status(spec.name)).broken_reason
        if broken is not None:
            self._heart.announce(AppState.LOADING, f"broken: {broken}")
            return None
        died = patiently(lambda: self._store.load_failures(spec.name))
        if died >= MAX_LOAD_FAILURES:
            self.break_app(
                f"{died} starts in a row ended before the model was loaded, as when the system "
                "kills a process for its memory: free memory, or give the app more."
            )
            return None
        try:
            engine = load_engine(
                spec.checkpoint,
                device=device,
                threads=max(1, int(spec.num_cpus)),
                precision=spec.precision,
                compiles=spec.compiles,
                exact=spec.exact,
                compile_cache=self._settings.compile_cache,
                on_phase=self._on_phase,
                on_share=self._on_share,
            )
        except CheckpointError as error:
            self.break_app(error.reason)
            return None
        seconds = time.monotonic() - born
        pace = LoadPace(seconds=seconds, reading_seconds=self._reading_seconds, size=self._size)
        patiently(lambda: self._store.note_load(spec.name, pace))
        log.info("%s: ready after %.1f s", spec.name, seconds)
        return engine

    def failed(self, reason: str) -> None:
        """This start has failed; too many in a row break the app for this reason."""
        failures = patiently(lambda: self._store.count_load_failure(self._spec.name))
        if failures >= MAX_LOAD_FAILURES:
            self.break_app(f"{reason} ({failures} starts failed.)")

    def break_app(self, reason: str) -> None:
        """Mark the app broken and end its queued jobs with the reason."""
        log.error("%s: broken: %s", self._spec.name, reason)
        self._heart.announce(AppState.LOADING, f"broken: {reason}")
        drain = Drain(
            app=self._spec.name,
            failure=JobFailure(code="app_broken", message=reason),
            job_ttl=self._settings.job_ttl,
            broken=True,
            spec=self._spec,
        )
        patiently(lambda: self._store.drain(drain))

    def _on_phase(self, phase: str) -> None:
        progress = LoadProgress(
            seconds=time.monotonic() - self._born,
            bytes=int(self._share * self._size),
            size=self._size,
            reading_seconds=self._reading_seconds,
        )
        self._heart.announce(AppState.LOADING, phase, progress)
        limit = self._settings.load_timeout.total_seconds()
        self._watchdog.expect(f"Loading ({phase})", limit)

    def _on_share(self, share: float) -> None:
        now = time.monotonic()
        if self._reading_since is None:
            self._reading_since = now
        self._share, self._reading_seconds = share, now - self._reading_since
