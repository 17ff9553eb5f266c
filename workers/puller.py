"""What a replica does: hold one checkpoint and pull jobs from its app's queue.

Threads: the engine thread loads, claims, steps and decodes; the heartbeat keeps presence and leases
(heartbeat.py); one finisher encodes images and stores results beside the next job's denoising.
"""

import logging
import os
import platform
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from sdserve.apps import AppSpec, AppState, ReplicaPresence
from sdserve.errors import CheckpointError, GenerationError, SdServeError, StoreUnavailableError
from sdserve.generation import ComputeMetrics
from sdserve.jobs import ClaimedJob, JobFailure, JobStatus
from sdserve.operations import Claim, Drain, Ending, Finish, Pulse, Reap, Release
from sdserve.store import RedisJobStore, connect
from workers.heartbeat import Heartbeat
from workers.loading import load_engine, refuse_changed
from workers.metering import Meter
from workers.run import JobRun

if TYPE_CHECKING:  # imported by load_engine, after the file has begun to be read
    from workers.engine import DiffusionEngine

log = logging.getLogger(__name__)

Value = TypeVar("Value")

MAX_LOAD_FAILURES = 3  # starts in a row; then the app is broken rather than started for ever
STORE_RETRY = 0.5  # seconds
FINISH_PATIENCE = 120.0  # seconds that a finished picture waits for Redis to come back
WORK_WAIT = 1.0  # seconds of one blocking read
REAP_INTERVAL = 1.0  # seconds
FILES_INTERVAL = 2.0  # seconds between looks whether the checkpoint is still the same file


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """What a replica needs to know of its surroundings."""

    redis_url: str
    lease: timedelta
    job_ttl: timedelta
    result_ttl: timedelta
    max_result_bytes: int
    stop_grace: timedelta  # how long a running job may go on once the replica is told to stop


class Puller:
    """Pulls and runs the jobs of one app, from its construction to `stop`."""

    def __init__(self, spec: AppSpec, settings: ReplicaSettings, *, born: float) -> None:
        """Start. `born` is when the replica began to come up (monotonic seconds)."""
        self._spec = spec
        self._settings = settings
        self._device = "cuda:0" if spec.num_gpus else "cpu"
        self._born = born
        self._ready_at = self._born
        # A blocking read may not outlive the reply time-out, hence the longer one.
        self._store = RedisJobStore(connect(settings.redis_url, reply_timeout=WORK_WAIT + 2))
        self._id = f"{platform.node()}-{os.getpid()}-{uuid4().hex[:6]}"
        presence = ReplicaPresence(
            id=self._id,
            state=AppState.LOADING,
            phase="starting a process",
            pid=os.getpid(),
            node=platform.node(),
        )
        self._heart = Heartbeat(
            RedisJobStore(connect(settings.redis_url)),
            spec.name,
            presence,
            slots=spec.slots,
            lease=settings.lease,
        )
        self._stopping = threading.Event()
        self._reaped_at = self._looked_at = 0.0
        self._death: BaseException | None = None
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="finish")
        self._active: list[JobRun] = []
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)
        self._heart.start()
        self._thread.start()

    @property
    def death(self) -> BaseException | None:
        """What ended the engine thread, if it should have gone on."""
        return self._death

    def stop(self) -> None:
        """Claim nothing more, finish or hand back what runs, leave."""
        self._stopping.set()
        self._thread.join(self._settings.stop_grace.total_seconds())
        for run in list(self._active):
            self._release(run.job)
        self._finisher.shutdown(wait=True)
        with suppress(StoreUnavailableError):  # the presence runs out by itself
            self._heart.stop()

    # --- the engine thread -------------------------------------------------------------------

    def _live(self) -> None:
        try:
            engine = self._load()
            if engine is not None:
                self._serve(engine)
        except BaseException as error:
            log.exception("%s: the engine thread died", self._spec.name)
            self._death = error
            raise

    def _load(self) -> "DiffusionEngine | None":
        """Build the engine; None when the app is broken and this replica has nothing to do."""
        spec = self._spec
        died = self._persist(lambda: self._store.load_failures(spec.name))
        if died >= MAX_LOAD_FAILURES:
            self._break(
                f"{died} starts in a row ended before the model was loaded, as when the system "
                "kills a process for its memory: free memory, or give the app more."
            )
            return None
        try:
            engine = load_engine(
                spec.checkpoint,
                device=self._device,
                threads=max(1, int(spec.num_cpus)),
                on_phase=lambda phase: self._heart.announce(AppState.LOADING, phase),
            )
        except CheckpointError as error:
            self._break(error.reason)
            return None
        except Exception as error:
            failures = self._persist(lambda: self._store.count_load_failure(spec.name))
            if failures < MAX_LOAD_FAILURES:
                raise  # Serve starts another replica
            log.exception("%s: cannot be loaded", spec.name)
            what = str(error) if isinstance(error, SdServeError) else f"{error!r}."
            self._break(f"{what} ({failures} starts failed.)")
            return None
        self._ready_at = time.monotonic()
        self._persist(lambda: self._store.note_load(spec.name, self._ready_at - self._born))
        log.info("%s: ready after %.1f s", spec.name, self._ready_at - self._born)
        return engine

    def _break(self, reason: str) -> None:
        """Mark the app broken and end its queued jobs with the reason; a redeploy heals."""
        log.error("%s: broken: %s", self._spec.name, reason)
        self._heart.announce(AppState.LOADING, f"broken: {reason}")
        failure = JobFailure(code="app_broken", message=reason)
        drain = Drain(
            app=self._spec.name,
            failure=failure,
            job_ttl=self._settings.job_ttl,
            broken=True,
            spec=self._spec,
        )
        self._persist(lambda: self._store.run(drain))

    def _serve(self, engine: "DiffusionEngine") -> None:
        self._heart.announce(AppState.READY, "ready")
        while not self._stopping.is_set() or self._active:
            try:
                self._reap()
                self._look_at_files()
                self._claim()
                if not self._active and not self._stopping.is_set():
                    self._store.wait_for_work(self._spec.name, WORK_WAIT)
            except StoreUnavailableError as error:
                log.warning("%s: %s", self._spec.name, error)
                if not self._active:
                    self._stopping.wait(STORE_RETRY)
            self._drop_unwanted()
            for run in [run for run in self._active if run.denoising is None]:
                self._guarded([run], lambda run=run: self._begin(engine, run))
            for batch in self._batches():
                self._guarded(batch, lambda batch=batch: self._step(engine, batch))
            for run in [run for run in self._active if run.denoising and run.denoising.is_done]:
                self._guarded([run], lambda run=run: self._decode(engine, run))

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
            for run in list(self._active):
                self._active.remove(run)
                self._release(run.job)
                self._heart.drop(run.job)
            self._break(error.reason)

    def _claim(self) -> None:
        free = self._spec.slots - len(self._active)
        if free <= 0 or self._stopping.is_set():
            return
        claim = Claim(app=self._spec.name, replica=self._id, count=free, lease=self._settings.lease)
        for job in self._store.run(claim):
            self._heart.hold(job)
            # Of the wait, what this replica spent loading: the rest was the queue's.
            now = time.monotonic()
            load = max(0.0, self._ready_at - max(self._born, now - job.waited))
            meter = Meter(self._device, is_shared=self._spec.slots > 1)
            run = JobRun(job=job, meter=meter, load_seconds=load, queue_seconds=job.waited - load)
            self._active.append(run)

    def _drop_unwanted(self) -> None:
        """Stop what the user cancelled and what another replica has taken over."""
        for run in list(self._active):
            pulse = self._heart.pulse(run.job)
            if pulse is Pulse.OK:
                continue
            self._active.remove(run)
            if pulse is Pulse.CANCEL:
                self._finisher.submit(self._finish, run.job, JobStatus.CANCELLED)
            else:
                log.warning("job %s: the claim (fence %d) was lost", run.job.id, run.job.fence)
                self._heart.drop(run.job)

    def _batches(self) -> list[list[JobRun]]:
        """The runs that can share one UNet call: those with the same latent shape."""
        batches: dict[tuple[int, int], list[JobRun]] = {}
        for run in self._active:
            if run.denoising and not run.denoising.is_done:
                shape = run.job.params.width, run.job.params.height
                batches.setdefault(shape, []).append(run)
        return list(batches.values())

    def _begin(self, engine: "DiffusionEngine", run: JobRun) -> None:
        with run.timed("encode"):
            run.denoising = engine.begin(run.job.params, len(run.pictures))
            engine.synchronize()

    def _step(self, engine: "DiffusionEngine", batch: list[JobRun]) -> None:
        start = time.perf_counter()
        engine.step([run.denoising for run in batch if run.denoising])
        engine.synchronize()  # progress and the bill tell what the device has done, not been told
        share = (time.perf_counter() - start) / len(batch)
        for run in batch:
            run.seconds["denoise"] += share
            self._heart.progress(run.job, step=run.steps_done, phase=run.phase)

    def _decode(self, engine: "DiffusionEngine", run: JobRun) -> None:
        assert run.denoising is not None  # noqa: S101 (only done runs come here)
        with run.timed("decode"):
            run.pictures.append(engine.decode(run.denoising))  # on the host: nothing runs any more
        run.denoising = None
        if len(run.pictures) == run.job.params.num_images:
            self._active.remove(run)
            self._finisher.submit(self._succeed, run)

    def _guarded(self, batch: list[JobRun], work: Callable[[], None]) -> None:
        """Do a part of the work of these jobs; an error ends them, not the replica."""
        try:
            work()
        except Exception as error:
            failure = _failure(error)
            if failure.code == "internal_error":
                log.exception("jobs %s failed", [run.job.id for run in batch])
            for run in batch:
                self._active.remove(run)
                self._finisher.submit(self._finish, run.job, JobStatus.FAILED, failure)

    # --- the finisher ------------------------------------------------------------------------

    def _succeed(self, run: JobRun) -> None:
        try:
            self._finish_images(run)
        except Exception as error:
            failure = _failure(error)
            log.exception("job %s: its images could not be kept", run.job.id)
            self._finish(run.job, JobStatus.FAILED, failure)

    def _finish_images(self, run: JobRun) -> None:
        from workers.images import encode_image

        job, params = run.job, run.job.params
        with run.timed("image_encode"):
            images = [
                encode_image(
                    pixels,
                    params.format,
                    params,
                    model=self._spec.checkpoint.name,
                    seed=(params.seed + k) % 2**32,
                )
                for k, pixels in enumerate(run.pictures)
            ]
        size = sum(len(image.data) for image in images)
        if size > self._settings.max_result_bytes:
            limit = self._settings.max_result_bytes
            message = f"The images have {size} bytes, the limit is {limit}: ask for fewer, or JPEG."
            self._finish(
                job, JobStatus.FAILED, JobFailure(code="result_too_large", message=message)
            )
            return
        blobs = [image.data for image in images]
        names = self._persist(lambda: self._store.put_results(job.id, job.fence, blobs))
        seeds = [image.seed for image in images]
        metrics = self._bill(run)
        self._finish(
            job,
            JobStatus.SUCCEEDED,
            result_keys=names,
            image_seeds=seeds,
            metrics=metrics,
            seconds=sum(run.seconds.values()),
        )

    def _bill(self, run: JobRun) -> ComputeMetrics:
        seconds = run.seconds
        on_replica = time.monotonic() - run.claimed_at
        on_device = seconds["encode"] + seconds["denoise"] + seconds["decode"]
        return ComputeMetrics(
            query_duration_seconds=run.queue_seconds + run.load_seconds + on_replica,
            replica_num_cpus=self._spec.num_cpus,
            queue_seconds=run.queue_seconds,
            load_seconds=run.load_seconds,
            encode_seconds=seconds["encode"],
            denoise_seconds=seconds["denoise"],
            decode_seconds=seconds["decode"],
            image_encode_seconds=seconds["image_encode"],
            seconds_per_step=seconds["denoise"] / run.job.params.total_steps,
            gpu_seconds=on_device if self._spec.num_gpus else None,
            replica_id=self._id,
            node=platform.node(),
            **asdict(run.meter.stop()),
        )

    def _finish(
        self,
        job: ClaimedJob,
        status: JobStatus,
        error: JobFailure | None = None,
        *,
        result_keys: list[str] | None = None,
        image_seeds: list[int] | None = None,
        metrics: ComputeMetrics | None = None,
        seconds: float = 0.0,
    ) -> None:
        finish = Finish(
            app=self._spec.name,
            job_id=job.id,
            fence=job.fence,
            status=status,
            error=error,
            job_ttl=self._settings.job_ttl,
            result_ttl=self._settings.result_ttl,
            result_keys=result_keys or [],
            image_seeds=image_seeds or [],
            metrics=metrics,
            seconds=seconds,
        )
        try:
            ending = self._persist(lambda: self._store.run(finish))
            if ending is Ending.LOST:
                log.warning("job %s: finished too late, another claim counts", job.id)
        finally:
            self._heart.drop(job)

    def _release(self, job: ClaimedJob) -> None:
        release = Release(app=self._spec.name, job_id=job.id, fence=job.fence)
        try:
            self._store.run(release)
        except StoreUnavailableError as error:
            log.warning("job %s: not handed back (%s); its lease will run out", job.id, error)

    def _persist(self, call: Callable[[], Value]) -> Value:
        """Call the store, and again while Redis is away: what was computed is worth waiting for.

        Raises:
            StoreUnavailableError: Redis stayed away for FINISH_PATIENCE.
        """
        deadline = time.monotonic() + FINISH_PATIENCE
        while True:
            try:
                return call()
            except StoreUnavailableError as error:
                if time.monotonic() > deadline:
                    raise
                log.warning("%s: %s", self._spec.name, error)
                time.sleep(STORE_RETRY)


def _failure(error: Exception) -> JobFailure:
    """An exception as the job's error: ours say what to do, others are a defect with a log."""
    if isinstance(error, GenerationError | StoreUnavailableError):
        return JobFailure(code=error.code, message=str(error))
    message = f"{type(error).__name__}: {error}. The replica's log has the traceback."
    return JobFailure(code="internal_error", message=message)
