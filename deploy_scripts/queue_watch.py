"""What the apps of one Redis look like now, for the autoscaling policies in Serve's controller.

Serve calls each app's policy in its control loop, so a policy may neither block nor raise: one
thread per controller watches all apps, and a policy only reads what that thread saw last.
"""

import logging
import threading
import time

import ray

from sdserve.apps import AppSpec, AppStatus
from sdserve.errors import StoreUnavailableError
from sdserve.scaling import evict
from sdserve.store import RedisJobStore, connect

log = logging.getLogger(__name__)

LOOK_INTERVAL = 0.2  # seconds
# Between two looks at an app at which nothing happens: a job is seen at the next one all the same,
# only the wish for a replica ahead of traffic (preload) waits for this one.
QUIET_INTERVAL = 5.0  # seconds
PLACEMENT_PATIENCE = 3.0  # seconds that a replica may take to appear before anybody is evicted


class QueueWatch:
    """What the apps of one Redis look like now, refreshed by a thread."""

    def __init__(self, redis_url: str) -> None:
        self._store = RedisJobStore(connect(redis_url))
        self._lock = threading.Lock()
        self._needs: dict[str, tuple[float, float]] = {}  # app -> (GPUs, CPUs) of a replica
        self._statuses: dict[str, AppStatus] = {}
        self._last_busy: dict[str, float] = {}
        self._waiting_since: dict[str, float] = {}
        self._evicted: set[str] = set()
        self._looked_at: dict[str, float] = {}

    def start(self) -> None:
        """Look every LOOK_INTERVAL, as long as this process lives."""
        threading.Thread(target=self._run, name="queue watch", daemon=True).start()

    def follow(self, app: AppSpec) -> None:
        """Watch this app from now on."""
        with self._lock:
            if app.name not in self._needs:
                self._last_busy[app.name] = time.monotonic()
            self._needs[app.name] = app.num_gpus, app.num_cpus

    def status(self, app: str) -> AppStatus | None:
        """The last look; None before the first."""
        return self._statuses.get(app)

    def take_eviction(self, app: str) -> bool:
        """Whether this app must give up its replicas, once."""
        if app in self._evicted:
            self._evicted.discard(app)
            return True
        return False

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except StoreUnavailableError as error:
                log.warning("scaling stands still: %s", error)
                time.sleep(1)
            except Exception:
                # Without this thread nothing would ever scale again.
                log.exception("a look at the queues failed")
                time.sleep(1)
            time.sleep(LOOK_INTERVAL)

    def look(self) -> None:
        """See what each app's policy and the choice of an eviction go by.

        Raises:
            StoreUnavailableError.
        """
        with self._lock:
            needs = dict(self._needs)
        deployed, unfinished = self._store.app_names(), set(self._store.unfinished())
        now = time.monotonic()
        for app in needs:
            if app not in deployed:
                with self._lock:
                    self._needs.pop(app, None)
                for known in (self._statuses, self._waiting_since, self._looked_at):
                    known.pop(app, None)
            elif app in unfinished or not self._is_quiet(app, now):
                self._look_at(app, now)
        self._choose_eviction(needs, now)

    def _is_quiet(self, app: str, now: float) -> bool:
        """Whether its last look is good enough, unless it has jobs by now."""
        status = self._statuses.get(app)
        if status is None or status.queued or status.running or status.replicas:
            return False
        return not status.wished and now - self._looked_at[app] < QUIET_INTERVAL

    def _look_at(self, app: str, now: float) -> None:
        status = self._statuses[app] = self._store.app_status(app)
        self._looked_at[app] = now
        work = status.queued + status.running
        if work:
            self._last_busy[app] = now
        if not status.replicas:
            self._evicted.discard(app)
        if work and not status.replicas and status.broken_reason is None:
            self._waiting_since.setdefault(app, now)
        else:
            self._waiting_since.pop(app, None)

    def _choose_eviction(self, needs: dict[str, tuple[float, float]], now: float) -> None:
        free = ray.available_resources() if self._waiting_since else {}
        waiting = {
            app: since
            for app, since in self._waiting_since.items()
            if now - since > PLACEMENT_PATIENCE
            and (free.get("GPU", 0) < needs[app][0] or free.get("CPU", 0) < needs[app][1])
        }
        idle = {
            app: self._last_busy[app]
            for app, status in self._statuses.items()
            if status.replicas and not status.queued and not status.running
        }
        app = evict(waiting, idle)
        if app is not None:
            log.info("%s gives its place to %s", app, ", ".join(waiting))
            self._evicted.add(app)


def watch_of(redis_url: str) -> QueueWatch:
    """The one watch of this process for that Redis."""
    if redis_url not in _watches:
        watch = _watches[redis_url] = QueueWatch(redis_url)
        watch.start()
    return _watches[redis_url]


_watches: dict[str, QueueWatch] = {}
