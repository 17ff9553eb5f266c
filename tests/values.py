"""Values that many tests need."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from sdserve import keys
from sdserve.apps import AppSpec
from sdserve.checkpoints import Checkpoint, ModelFile, inspect_checkpoint
from sdserve.families import Family, GenerationDefaults, Kind
from sdserve.generation import ComputeMetrics, GenerationParams, ImageFormat
from sdserve.jobs import ClaimedJob, new_job_id
from sdserve.limits import ResultBudget
from sdserve.operations import Finish, Submit
from workers.replica_settings import ReplicaSettings

APP = "sd-test"
JOB_TTL = timedelta(hours=1)
RESULTS = ResultBudget(ttl=timedelta(minutes=30))
LEASE = timedelta(seconds=10)

DEFAULTS = GenerationDefaults(
    width=128,
    height=128,
    steps=20,
    guidance_scale=5.0,
    scheduler="ddim",
    size_multiple=8,
    min_size=64,
    max_size=256,
)
METRICS = ComputeMetrics(
    query_duration_seconds=1.0,
    replica_cpu_percent=100.0,
    replica_memory_mb=500.0,
    replica_num_cpus=1.0,
)


def params(**changes: Any) -> GenerationParams:
    fields: dict[str, Any] = {
        "prompt": "a red circle on a blue background",
        "negative_prompt": "",
        "num_inference_steps": 20,
        "guidance_scale": 5.0,
        "width": 128,
        "height": 128,
        "seed": 7,
        "scheduler": "ddim",
        "num_images": 1,
        "format": ImageFormat.BASE64,
    }
    return GenerationParams(**{**fields, **changes})


def params_for(path: Path, **changes: Any) -> GenerationParams:
    """A generation with a checkpoint's own defaults."""
    _, defaults = inspect_checkpoint(path)
    fields: dict[str, Any] = {
        "num_inference_steps": defaults.steps,
        "guidance_scale": defaults.guidance_scale,
        "width": defaults.width,
        "height": defaults.height,
        "scheduler": defaults.scheduler,
        "format": ImageFormat.PNG,
    }
    return params(**{**fields, **changes})


def spec(**changes: Any) -> AppSpec:
    fields: dict[str, Any] = {
        "name": APP,
        "checkpoint": Checkpoint(
            file=ModelFile(path=Path("/models/test.safetensors"), size=1000, mtime_ns=10**18),
            kind=Kind(family=Family.SD1),
        ),
        "defaults": DEFAULTS,
        "num_gpus": 0.0,
        "num_cpus": 1.0,
    }
    return AppSpec(**{**fields, **changes})


def replica_settings(redis_url: str, **changes: Any) -> ReplicaSettings:
    fields: dict[str, Any] = {
        "redis_url": redis_url,
        "lease": timedelta(seconds=5),
        "job_ttl": JOB_TTL,
        "results": RESULTS,
        "max_result_bytes": 2**20,
        "stop_grace": timedelta(seconds=30),
        "step_timeout": timedelta(minutes=2),
        "load_timeout": timedelta(minutes=10),
    }
    return ReplicaSettings(**{**fields, **changes})


def submit(**changes: Any) -> Submit:
    fields: dict[str, Any] = {
        "job_id": new_job_id(),
        "app": APP,
        "model": "test",
        "params": params(),
        "queue_limit": 100,
        "digest": "digest",
    }
    return Submit(**{**fields, **changes})


def names_of(job: ClaimedJob, images: Sequence[bytes]) -> list[str]:
    """The keys of the images of this claim."""
    return [keys.result(job.id, job.fence, image) for image in range(len(images))]


def finish(job_id: str, fence: int, status: Any, **changes: Any) -> Finish:
    fields: dict[str, Any] = {
        "app": APP,
        "job_id": job_id,
        "fence": fence,
        "status": status,
        "job_ttl": JOB_TTL,
        "results": RESULTS,
    }
    return Finish(**{**fields, **changes})
