"""Ends jobs: encodes their images, stores the bytes, writes the bill, all beside the next job."""

import logging
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from sdserve.apps import AppSpec
from sdserve.errors import GenerationError, StoreUnavailableError
from sdserve.generation import ComputeMetrics
from sdserve.jobs import ClaimedJob, JobFailure, JobStatus
from sdserve.operations import Ending, Finish
from sdserve.pace import Measured
from sdserve.store import RedisJobStore
from workers.heartbeat import Heartbeat
from workers.patience import patiently
from workers.replica_settings import ReplicaSettings
from workers.run import JobRun

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
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="finish")

    def succeed(self, run: JobRun) -> None:
        """Keep the pictures of a run that has all of them."""
        self._thread.submit(self._succeed, run)

    def end(self, job: ClaimedJob, status: JobStatus, failure: JobFailure | None = None) -> None:
        """End a job without a result."""
        self._thread.submit(self._finish, job, status, failure)

    def close(self) -> None:
        """Take nothing more; wait until all is stored."""
        self._thread.shutdown(wait=True)

    def _succeed(self, run: JobRun) -> None:
        try:
            self._finish_images(run)
        except Exception as error:
            log.exception("job %s: its images could not be kept", run.job.id)
            self._finish(run.job, JobStatus.FAILED, failure_of(error))

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
        names = patiently(lambda: self._store.put_results(job.id, job.fence, blobs))
        seeds = [image.seed for image in images]
        metrics = self._bill(run)
        self._finish(
            job,
            JobStatus.SUCCEEDED,
            result_keys=names,
            image_seeds=seeds,
            metrics=metrics,
            measured=run.measured,
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
            replica_id=self._replica_id,
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
        measured: Measured | None = None,
    ) -> None:
        finish = Finish(
            app=self._spec.name,
            job_id=job.id,
            fence=job.fence,
            status=status,
            error=error,
            job_ttl=self._settings.job_ttl,
            results=self._settings.results,
            result_keys=result_keys or [],
            image_seeds=image_seeds or [],
            metrics=metrics,
            measured=measured,
        )
        try:
            if patiently(lambda: self._store.run(finish)) is Ending.LOST:
                log.warning("job %s: finished too late, another claim counts", job.id)
        except StoreUnavailableError as away:
            log.error("job %s: its end was not stored (%s); its lease will run out", job.id, away)
        finally:
            self._heart.drop(job)


def failure_of(error: Exception) -> JobFailure:
    """An exception as the job's error: ours say what to do, others are a defect with a log."""
    if isinstance(error, GenerationError | StoreUnavailableError):
        return JobFailure(code=error.code, message=str(error))
    message = f"{type(error).__name__}: {error}. The replica's log has the traceback."
    return JobFailure(code="internal_error", message=message)
