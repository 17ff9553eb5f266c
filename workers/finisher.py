"""Ends jobs: encodes their images, stores the bytes, writes the bill, all beside the next job."""

import logging
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from sdserve import keys
from sdserve.apps import AppSpec
from sdserve.errors import GenerationError, StoreFullError, StoreUnavailableError
from sdserve.generation import ComputeMetrics, EncodedImage
from sdserve.jobs import JobFailure, JobStatus
from sdserve.operations import Ending, Finish
from sdserve.store import RedisJobStore
from sdserve.usage import Spent
from workers.heartbeat import Heartbeat
from workers.patience import patiently
from workers.replica_settings import ReplicaSettings
from workers.run import JobRun
from workers.stopwatch import ThreadClock

log = logging.getLogger(__name__)


class Finisher:
    """One thread of its own. A job's lease is kept until its end is stored."""

    def __init__(
        self,
        spec: AppSpec,
        settings: ReplicaSettings,
        store: RedisJobStore,
        heart: Heartbeat,
        replica_id: str,
    ) -> None:
        self._spec = spec
        self._settings = settings
        self._store = store
        self._heart = heart
        self._replica_id = replica_id
        self._clock = ThreadClock()
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="finish", initializer=self._clock.start
        )

    def succeed(self, run: JobRun) -> None:
        """Keep the pictures of a run that has all of them."""
        self._thread.submit(self._succeed, run)

    def end(self, run: JobRun, status: JobStatus, failure: JobFailure | None = None) -> None:
        """End a job without a result; it is billed for what it used."""
        self._thread.submit(self._finish, run, status, failure)

    def cpu_seconds(self) -> float:
        """CPU time of this thread so far."""
        return self._clock.seconds()

    def close(self) -> None:
        """Take nothing more; wait until all is stored."""
        self._thread.shutdown(wait=True)

    def _succeed(self, run: JobRun) -> None:
        try:
            self._finish_images(run)
        except Exception as error:
            log.exception("job %s: its images could not be kept", run.job.id)
            self._finish(run, JobStatus.FAILED, failure_of(error))

    def _finish_images(self, run: JobRun) -> None:
        from workers.images import encode_image

        params = run.job.params
        start, cpu = time.perf_counter(), time.thread_time()
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
        run.add_image_encoding(time.perf_counter() - start, time.thread_time() - cpu)
        size = sum(len(image.data) for image in images)
        if size > self._settings.max_result_bytes:
            limit = self._settings.max_result_bytes
            message = f"The images have {size} bytes, the limit is {limit}: ask for fewer, or JPEG."
            failure = JobFailure(code="result_too_large", message=message)
            self._finish(run, JobStatus.FAILED, failure)
            return
        self._finish(run, JobStatus.SUCCEEDED, images=images)

    def _bill(self, run: JobRun) -> ComputeMetrics:
        seconds = run.seconds
        on_replica = time.monotonic() - run.claimed_at
        return ComputeMetrics(
            query_duration_seconds=run.queue_seconds + run.load_seconds + on_replica,
            replica_num_cpus=self._spec.num_cpus,
            precision=run.precision,
            compiled=run.is_compiled,
            exact=run.is_exact and not run.is_compiled,
            queue_seconds=run.queue_seconds,
            load_seconds=run.load_seconds,
            encode_seconds=seconds["encode"],
            prompts_cached=run.prompts_cached,
            denoise_seconds=seconds["denoise"],
            decode_seconds=seconds["decode"],
            image_encode_seconds=seconds["image_encode"],
            seconds_per_step=seconds["denoise"] / run.job.params.total_steps,
            cpu_seconds=run.cpu_seconds,
            gpu_seconds=run.gpu_seconds,
            peak_gpu_memory_mb=run.peak_allocated_mb,
            peak_gpu_memory_reserved_mb=run.peak_reserved_mb,
            replica_id=self._replica_id,
            node=platform.node(),
            **asdict(run.meter.stop(run.windows, is_shared=run.is_shared)),
        )

    def _finish(
        self,
        run: JobRun,
        status: JobStatus,
        error: JobFailure | None = None,
        images: Sequence[EncodedImage] = (),
    ) -> None:
        job = run.job
        try:
            metrics = self._bill(run)
            try:
                ending = self._store_end(run, metrics, status, error, images)
            except StoreFullError as full:
                # Only of images: without them an end has room in a full store too.
                ending = self._store_end(run, metrics, JobStatus.FAILED, failure_of(full), ())
            if ending is Ending.LOST:
                log.warning("job %s: finished too late, another claim counts", job.id)
            elif ending is Ending.UNSTORED:
                log.error("job %s: its images are gone; its lease will run out", job.id)
        except StoreUnavailableError as away:
            log.error("job %s: its end was not stored (%s); its lease will run out", job.id, away)
        except Exception:
            log.exception("job %s: its bill cannot be made; its lease will run out", job.id)
        finally:
            self._heart.drop(job)

    def _store_end(
        self,
        run: JobRun,
        metrics: ComputeMetrics,
        status: JobStatus,
        error: JobFailure | None,
        images: Sequence[EncodedImage],
    ) -> Ending:
        job, is_success = run.job, status is JobStatus.SUCCEEDED
        finish = Finish(
            app=self._spec.name,
            job_id=job.id,
            fence=job.fence,
            status=status,
            error=error,
            job_ttl=self._settings.job_ttl,
            results=self._settings.results,
            result_keys=[keys.result(job.id, job.fence, k) for k in range(len(images))],
            image_seeds=[image.seed for image in images],
            metrics=metrics if is_success else None,
            measured=run.measured if is_success else None,
            spent=Spent.of(metrics, steps=run.steps_done),
        )
        return patiently(lambda: self._store.finish(finish, [image.data for image in images]))


def failure_of(error: Exception) -> JobFailure:
    """An exception as the job's error: ours say what to do, others are a defect with a log."""
    if isinstance(error, GenerationError | StoreUnavailableError):
        return JobFailure(code=error.code, message=str(error))
    message = f"{type(error).__name__}: {error}. The replica's log has the traceback."
    return JobFailure(code="internal_error", message=message)
