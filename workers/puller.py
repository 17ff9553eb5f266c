"""What a replica does: hold one checkpoint and pull jobs from its app's queue.

Threads: the engine thread loads, claims, steps and decodes; the heartbeat keeps presence and leases
(heartbeat.py); the finisher encodes and stores results beside the next job's denoising
(finisher.py); the watchdog notices that the engine thread hangs (watchdog.py).

Three ways out: told to stop, it finishes or hands back its jobs; dying (a hang, a lost device, an
error that should not be) it gives up its leases, which counts as a lost worker; killed, its leases
run out. An exception of one job is none of these: it ends that job alone.
"""

import logging
import math
import os
import platform
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

from sdserve.apps import AppSpec, AppState, ReplicaPresence
from sdserve.errors import CheckpointError, SdServeError, StoreUnavailableError
from sdserve.jobs import JobStatus
from sdserve.operations import Claim, Pulse, Reap, Release
from sdserve.store import RedisJobStore, connect
from workers.finisher import Finisher, failure_of
from workers.heartbeat import Heartbeat
from workers.loading import load_engine, refuse_changed
from workers.metering import Meter
from workers.previews import Previews
from workers.replica_settings import ReplicaSettings
from workers.run import JobRun
from workers.startup import Startup
from workers.stopwatch import Section, Stopwatch, shares
from workers.watchdog import LAST_WORDS, Watchdog, end_process_in, spare_process
from workers.width import Widths

if TYPE_CHECKING:  # imported by load_engine, after the file has begun to be read
    from workers.denoising import Denoising
    from workers.engine import DiffusionEngine

log = logging.getLogger(__name__)

STORE_RETRY = 0.5  # seconds
REAP_INTERVAL = 0.5  # seconds; also the longest blocking read
ALONE_INTERVAL = 0.01  # seconds between looks whether a job that runs alone may begin
JOIN_INTERVAL = 0.05  # seconds between looks whether another job waits that could join those here
FILES_INTERVAL = 2.0  # seconds between looks whether the checkpoint is still the same file

# A step's limit is generous because a wrong alarm costs a job an attempt, a late one only time:
# the slowest steps of a GPU take seconds, those of SDXL on one loaded core a quarter of an hour.
CPU_PATIENCE = 20  # times the limit of a GPU


class Puller:
    """Pulls and runs the jobs of one app, from its construction to `stop` or to its death."""

    def __init__(
        self,
        spec: AppSpec,
        settings: ReplicaSettings,
        *,
        born: float,
        load: Callable[..., "DiffusionEngine"] = load_engine,
        end_process: Callable[[int], object] | None = None,
    ) -> None:
        """Start.

        Args:
            spec: the app.
            settings: the replica's surroundings.
            born: when the replica began to come up (monotonic seconds).
            load: as `load_engine`.
            end_process: called with an exit code by a puller that dies.
        """
        self._spec = spec
        self._settings = settings
        self._end_process = end_process or _end_process
        self._device = "cuda:0" if spec.num_gpus else "cpu"
        step_timeout = settings.step_timeout * (1 if spec.num_gpus else CPU_PATIENCE)
        self._step_limit = step_timeout.total_seconds()
        self._born = self._ready_at = born
        # A blocking read may not outlive the reply time-out, hence the longer one.
        self._store = RedisJobStore(connect(settings.redis_url, reply_timeout=REAP_INTERVAL + 2))
        self._id = f"{platform.node()}-{os.getpid()}-{uuid4().hex[:6]}"
        presence = ReplicaPresence(
            id=self._id,
            state=AppState.LOADING,
            phase="starting a process",
            pid=os.getpid(),
            node=platform.node(),
        )
        self._widths, self._width = Widths(spec.slots), 1
        self._compiled = 0  # shapes
        store = RedisJobStore(connect(settings.redis_url))
        self._heart = Heartbeat(store, spec.name, presence, lease=settings.lease)
        self._finisher = Finisher(spec, settings, self._store, self._heart, self._id)
        self._previews = Previews(spec.name, self._store, self._heart)
        self._watchdog = Watchdog(self.die)
        self._startup = Startup(spec, settings, self._store, self._heart, self._watchdog)
        self._started, self._stopping = threading.Event(), threading.Event()
        self._gone = threading.Event()  # stopped or dying: what still runs counts no more
        self._dying = threading.Lock()
        self._reaped_at = self._looked_at = self._joined_at = 0.0
        self._active: list[JobRun] = []
        self._retiring = threading.Lock()  # of runs out of `_active`: each ends in one way only
        self._thread = threading.Thread(target=self._live, args=(load,), name="engine", daemon=True)
        self._heart.start()
        self._watchdog.start()
        self._thread.start()

    @property
    def is_stopping(self) -> bool:
        """Whether it claims nothing more."""
        return self._stopping.is_set()

    def stop(self, grace: timedelta | None = None) -> None:
        """Claim nothing more, finish or hand back what runs, leave.

        Args:
            grace: how long running jobs may go on; the settings' `stop_grace` if None.
        """
        self._stopping.set()
        if self._started.is_set():  # before that it holds no job, and loading takes long
            grace = self._settings.stop_grace if grace is None else grace
            self._thread.join(grace.total_seconds())
        self._gone.set()
        self._hand_back()  # here, not in the engine thread: its step may take long yet
        self._previews.close()
        self._finisher.close()
        self._watchdog.stop()
        with suppress(StoreUnavailableError):  # the presence runs out by itself
            self._heart.stop()

    def die(self, reason: str) -> None:
        """End this process as a lost worker: its jobs run elsewhere, with one attempt less.

        What is drawn already is still stored. While Redis is away the process ends without a word,
        and leases and presence run out.

        Args:
            reason: for the log; the app's, if it breaks because it cannot be loaded.
        """
        if self._gone.is_set() or not self._dying.acquire(blocking=False):
            return
        log.critical("%s: replica %s ends: %s", self._spec.name, self._id, reason)
        self._gone.set()
        self._stopping.set()
        self._watchdog.stop()
        end_process_in(LAST_WORDS)
        if not self._started.is_set():
            self._startup.failed(reason)
        self._previews.close()
        self._finisher.close()
        try:
            self._heart.surrender()
        except StoreUnavailableError as error:
            log.warning("%s: the leases will run out: %s", self._spec.name, error)
        spare_process()
        self._end_process(1)  # Serve starts another replica

    # --- the engine thread -------------------------------------------------------------------

    def _live(self, load: Callable[..., "DiffusionEngine"]) -> None:
        try:
            engine = self._startup.load(load, device=self._device, born=self._born)
            self._ready_at = time.monotonic()
            self._started.set()
            if engine is not None:
                self._stopwatch = Stopwatch(self._device, beside=self._finisher.cpu_seconds)
                self._serve(engine)
            self._watchdog.stop()
        except BaseException as error:
            log.exception("%s: the engine thread died", self._spec.name)
            self.die(str(error) if isinstance(error, SdServeError) else f"{error!r}.")

    def _serve(self, engine: "DiffusionEngine") -> None:
        self._heart.announce(AppState.READY, "ready")
        while not self._gone.is_set() and (self._active or not self._stopping.is_set()):
            # As for a step of these: another limit would set the process's own end each time.
            self._watchdog.expect("Looking for work", self._step_limit * max(1, len(self._active)))
            try:
                self._reap()
                self._look_at_files()
                self._claim()
                if not self._active and not self._stopping.is_set():
                    wait = self._reaped_at + REAP_INTERVAL - time.monotonic()
                    self._store.wait_for_work(self._spec.name, max(wait, 0.01))
            except StoreUnavailableError as error:
                log.warning("%s: %s", self._spec.name, error)
                if not self._active:
                    self._stopping.wait(STORE_RETRY)
            self._drop_unwanted()
            for run in [run for run in self._active if self._may_begin(run)]:
                self._guarded([run], "Encoding", lambda run=run: self._begin(engine, run))
            if batch := self._batch():
                self._guarded(batch, "A step", lambda batch=batch: self._step(engine, batch))
            for run in [run for run in self._active if run.denoising and run.denoising.is_done]:
                self._guarded([run], "Decoding", lambda run=run: self._decode(engine, run))
            if self._active and not any(run.denoising or run.pictures for run in self._active):
                time.sleep(ALONE_INTERVAL)

    def _reap(self) -> None:
        if time.monotonic() - self._reaped_at >= REAP_INTERVAL:
            self._reaped_at = time.monotonic()
            self._store.run(Reap(app=self._spec.name, job_ttl=self._settings.job_ttl))

    def _look_at_files(self) -> None:
        """Serve no file that was replaced: what is not read yet would come from the new one."""
        if time.monotonic() - self._looked_at < FILES_INTERVAL:
            return
        self._looked_at = time.monotonic()
        try:
            refuse_changed(self._spec.checkpoint)
        except CheckpointError as error:
            self._stopping.set()
            # Handed back, they fail with the queue, or run on the app that was deployed meanwhile.
            self._hand_back()
            self._startup.break_app(error.reason)

    def _claim(self) -> None:
        while not self._stopping.is_set() and self._has_room():
            if any(fence > 1 for _, fence in self._heart.held):
                return  # it runs alone
            claim = Claim(
                app=self._spec.name,
                replica=self._id,
                count=1,
                lease=self._settings.lease,
                # One of another size could not join the others' steps: better elsewhere, or later.
                size=self._active[0].size if self._active else None,
            )
            claimed = self._store.run(claim)
            if not claimed:
                self._joined_at = time.monotonic()
                return
            (job,) = claimed
            self._heart.hold(job)
            # Of the wait, what this replica spent loading: the rest was the queue's.
            now = time.monotonic()
            load = max(0.0, self._ready_at - max(self._born, now - job.waited))
            run = JobRun(
                job=job,
                meter=Meter(self._device),
                load_seconds=load,
                queue_seconds=job.waited - load,
            )
            self._active.append(run)
            if len(self._active) > 1:
                for together in self._active:
                    together.is_shared = True

    def _has_room(self) -> bool:
        """Whether another job should be claimed: none is here, or it would do to step it too."""
        if not self._active:
            return True
        if time.monotonic() - self._joined_at < JOIN_INTERVAL:
            return False  # a look costs a round trip, which a step may be as short as
        return self._widths.has_room(self._active[0].size, [run.rows for run in self._active])

    def _may_begin(self, run: JobRun) -> bool:
        """A job that has lost a replica before may be what kills them: it takes no other with it.

        Nor can another such job take it: it was perhaps only the neighbour. So it begins when it is
        all that this replica holds, and nothing more is claimed until its end is stored.
        """
        is_alone = {job_id for job_id, _ in self._heart.held} == {run.job.id}
        return run.denoising is None and (run.job.fence == 1 or is_alone)

    def _drop_unwanted(self) -> None:
        """Stop what the user cancelled and what another replica has taken over."""
        for run in list(self._active):
            pulse = self._heart.pulse(run.job)
            if pulse in (Pulse.OK, Pulse.WATCHED):
                continue
            if pulse is Pulse.CANCEL:
                self._retire(run, lambda run=run: self._finisher.end(run, JobStatus.CANCELLED))
            else:
                log.warning("job %s: the claim (fence %d) was lost", run.job.id, run.job.fence)
                self._retire(run, lambda run=run: self._forget(run))

    def _batch(self) -> list[JobRun]:
        """The runs to step now: those that came first, as many as pay together."""
        ready = [run for run in self._active if run.denoising and not run.denoising.is_done]
        if not ready:
            return []
        return ready[: self._widths.together(ready[0].size, [run.rows for run in ready])]

    def _begin(self, engine: "DiffusionEngine", run: JobRun) -> None:
        run.precision = engine.precision
        if not run.pictures:
            run.is_exact = engine.is_exact and run.job.params.step_cache == 1
        with self._stopwatch.section(lambda section: run.add("encode", section)):
            run.denoising = engine.begin(run.job.params, len(run.pictures))
        run.prompts_cached += run.denoising.conditioning.is_cached

    def _step(self, engine: "DiffusionEngine", batch: list[JobRun]) -> None:
        pictures = [run.denoising for run in batch if run.denoising]
        sections = list[Section]()

        def bill(section: Section) -> None:
            sections.append(section)
            for run, share in zip(batch, shares([one.rows for one in pictures]), strict=True):
                run.add("denoise", section, share)

        for run, picture in zip(batch, pictures, strict=True):
            picture.is_watched = self._previews.wants(run)
        if len(batch) > 1:
            for run in batch:
                run.is_exact = False
        is_whole = not any(picture.is_shallow for picture in pictures)
        with self._stopwatch.section(bill):
            is_fit = engine.step(pictures)
        if engine.compiled > self._compiled:
            self._compiled = engine.compiled
            self._widths.forget()
        if is_whole or not is_fit:  # what a shallow step costs says nothing of the others
            self._learn(batch, sections[-1].seconds if is_fit else math.inf)
        for run, picture in zip(batch, pictures, strict=True):
            self._heart.progress(run.job, step=run.steps_done, phase=run.phase)
            if picture.is_watched:
                self._preview(engine, run, picture)

    def _learn(self, batch: list[JobRun], seconds: float) -> None:
        """Note what a step took, and tell how many jobs are worth running together."""
        size, rows = batch[0].size, [run.rows for run in batch]
        self._widths.seen(size, rows, seconds)
        width = self._widths.known(size, rows[0])
        if width != self._width:
            self._width = width
            self._heart.offer(width)
            curve = ", ".join(f"{cost:.3g}" for cost in self._widths.curve(size, rows[0]))
            log.info(
                "%s: %d pictures of %dx%d at a time; with 1, 2, ... a step takes %s s",
                self._spec.name, width, *size, curve,
            )  # fmt: skip

    def _preview(self, engine: "DiffusionEngine", run: JobRun, picture: "Denoising") -> None:
        """Show what the step foresaw. Whatever goes wrong with that, the job goes on.

        Raises:
            RuntimeError: the device is lost.
        """
        foreseen, picture.foreseen = picture.foreseen, None
        if foreseen is None:
            return
        try:
            self._previews.show(run, engine.paint(foreseen))
        except Exception as error:
            from workers.device import is_device_lost  # imports torch, as the engine has

            if is_device_lost(error):
                raise
            log.exception("%s: no previews of this model", self._spec.name)
            self._previews.give_up()

    def _decode(self, engine: "DiffusionEngine", run: JobRun) -> None:
        assert run.denoising is not None  # noqa: S101 (only done runs come here)
        with self._stopwatch.section(lambda section: run.add("decode", section)):
            run.pictures.append(engine.decode(run.denoising))
        run.is_compiled = engine.compiled > 0
        run.denoising = None
        if len(run.pictures) == run.job.params.num_images:
            self._retire(run, lambda: self._finisher.succeed(run))

    def _guarded(self, batch: list[JobRun], what: str, work: Callable[[], None]) -> None:
        """Do a part of the work of these jobs; an error ends them, not the replica.

        Raises:
            RuntimeError: the device is lost, which ends the replica.
        """
        self._watchdog.expect(what, self._step_limit * len(batch))
        try:
            work()
        except Exception as error:
            from workers.device import is_device_lost  # imports torch, as the engine has

            if is_device_lost(error):
                raise
            failure = failure_of(error)
            if failure.code == "internal_error":
                log.exception("jobs %s failed", [run.job.id for run in batch])
            for run in batch:
                self._retire(
                    run, lambda run=run: self._finisher.end(run, JobStatus.FAILED, failure)
                )

    # --- any thread --------------------------------------------------------------------------

    def _retire(self, run: JobRun, end: Callable[[], None]) -> None:
        """End a run, unless it has been handed back meanwhile."""
        with self._retiring:
            if run in self._active:
                end()
                self._active.remove(run)

    def _hand_back(self) -> None:
        """Return the running jobs to the queue, as if this replica had never claimed them."""
        with self._retiring:
            runs = list(self._active)
            self._active.clear()
        for run in runs:
            release = Release(
                app=self._spec.name,
                job_id=run.job.id,
                fence=run.job.fence,
                job_ttl=self._settings.job_ttl,
            )
            try:
                self._store.run(release)
            except StoreUnavailableError as error:
                log.warning("job %s: not handed back (%s); its lease runs out", run.job.id, error)
            self._forget(run)

    def _forget(self, run: JobRun) -> None:
        """It is another's, or nobody's: it is not billed here."""
        run.meter.close()
        self._heart.drop(run.job)


def _end_process(code: int) -> None:
    logging.shutdown()
    os._exit(code)
