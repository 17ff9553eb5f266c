"""What travels over HTTP: request bodies checked by pydantic, response bodies for OpenAPI."""

import secrets
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api.codec import data_uri
from api.estimate import eta_seconds, phase
from api.usage_schemas import UsageAmounts
from sdserve.apps import AppOutlook, AppSpec, AppStatus, ReplicaPresence
from sdserve.errors import InvalidParameterError
from sdserve.families import MAX_STEP_CACHE, MAX_STEPS, SCHEDULERS, GenerationDefaults
from sdserve.generation import (
    MAX_IMAGES,
    ComputeMetrics,
    EncodedImage,
    GenerationParams,
    ImageFormat,
)
from sdserve.jobs import HIGHEST_PRIORITY, LOWEST_PRIORITY, Job, JobFailure, JobStatus
from sdserve.webhook_targets import MAX_URL

MAX_SEED = 2**32 - 1


class GenerateRequest(BaseModel):
    """A picture to draw. Absent fields take the app's defaults (`GET /{app}/v1/models`)."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"prompt": "a red circle on a blue background"}]},
    )

    prompt: str = Field(min_length=1, max_length=2000)
    negative_prompt: str = Field(default="", max_length=2000)
    num_inference_steps: int | None = Field(default=None, ge=1, le=150)
    guidance_scale: float | None = Field(
        default=None, ge=0, le=30, allow_inf_nan=False, description="1 or less: no guidance"
    )
    width: int | None = Field(default=None, ge=8, le=8192, description="pixels")
    height: int | None = Field(default=None, ge=8, le=8192, description="pixels")
    seed: int | None = Field(
        default=None, ge=0, le=MAX_SEED, description="drawn when absent, and returned"
    )
    scheduler: str | None = Field(default=None, description="one of " + ", ".join(SCHEDULERS))
    num_images: int = Field(default=1, ge=1, le=MAX_IMAGES)
    format: ImageFormat | None = Field(
        default=None, description="how images are encoded; base64 (the default) is PNG"
    )
    step_cache: int = Field(
        default=1,
        ge=1,
        le=MAX_STEP_CACHE,
        description="above 1 an approximation: of so many steps only the first computes all of the "
        "network (DeepCache; models with a UNet)",
    )
    priority: int = Field(
        default=0,
        ge=LOWEST_PRIORITY,
        le=HIGHEST_PRIORITY,
        description="of your own jobs the higher run sooner",
    )
    webhook: str | None = Field(
        default=None,
        max_length=MAX_URL,
        description="https URL that is told of the job's end (Standard Webhooks)",
    )

    def to_params(self, defaults: GenerationDefaults, fallback: ImageFormat) -> GenerationParams:
        """The request with nothing left open.

        Raises:
            InvalidParameterError: a size or a scheduler that this checkpoint cannot do.
        """
        width, height = self.width or defaults.width, self.height or defaults.height
        for field, pixels in (("width", width), ("height", height)):
            if pixels % defaults.size_multiple:
                message = f"{pixels} is not a multiple of {defaults.size_multiple}"
                raise InvalidParameterError(field, message)
            if not defaults.min_size <= pixels <= defaults.max_size:
                message = f"{pixels} is outside {defaults.min_size}..{defaults.max_size} pixels"
                raise InvalidParameterError(field, message)
        scheduler = self.scheduler or defaults.scheduler
        if scheduler not in defaults.schedulers:
            known = "does not suit this model" if scheduler in SCHEDULERS else "is unknown"
            message = f"'{scheduler}' {known}; choose one of {', '.join(defaults.schedulers)}"
            raise InvalidParameterError("scheduler", message)
        steps = self.num_inference_steps or defaults.steps
        if steps > MAX_STEPS.get(scheduler, steps):
            message = f"{steps} is more than the {MAX_STEPS[scheduler]} that {scheduler} can take"
            raise InvalidParameterError("num_inference_steps", message)
        if self.step_cache > defaults.max_step_cache:
            message = f"{self.step_cache} needs a model with a UNet; leave it out, or send 1"
            raise InvalidParameterError("step_cache", message)
        guidance = defaults.guidance_scale if self.guidance_scale is None else self.guidance_scale
        return GenerationParams(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            num_inference_steps=steps,
            guidance_scale=guidance,
            width=width,
            height=height,
            seed=secrets.randbelow(MAX_SEED + 1) if self.seed is None else self.seed,
            scheduler=scheduler,
            num_images=self.num_images,
            format=self.format or fallback,
            step_cache=self.step_cache,
        )


def _is_none(value: object) -> bool:
    return value is None


class GenerateResponse(BaseModel):
    """A finished generation."""

    status: Literal["success"] = "success"
    model: str
    image: str | None = Field(description="the first image as a data URI; null once it expired")
    images: list[str] | None = Field(
        default=None, exclude_if=_is_none, description="all images, when several"
    )
    prompt: str
    parameters: dict[str, Any] = Field(description="everything that reproduces the picture")
    job_id: str
    compute_metrics: ComputeMetrics

    @classmethod
    def of(cls, job: Job, metrics: ComputeMetrics, images: list[EncodedImage]) -> Self:
        uris = [data_uri(image) for image in images]
        return cls(
            model=job.model,
            image=uris[0] if uris else None,
            images=uris if job.params.num_images > 1 else None,
            prompt=job.params.prompt,
            parameters=job.params.to_dict(),
            job_id=job.id,
            compute_metrics=metrics,
        )


class JobProgressBody(BaseModel):
    """Denoising steps, over all images of the job."""

    step: int
    steps: int


class PreviewBody(BaseModel):
    """A picture on its way: the data of an `event: preview`."""

    step: int
    steps: int
    number: int = Field(description="which of the job's images, from 0")
    image: str = Field(description="a small WebP as a data URI")


class JobResponse(BaseModel):
    """A job as it stands."""

    id: str
    app: str
    model: str
    status: JobStatus
    phase: str | None = Field(description="what happens right now, in words")
    progress: JobProgressBody
    position: int | None = Field(description="jobs ahead in the queue; null when not queued")
    eta_seconds: float | None = Field(description="until the result; null when unknown")
    attempt: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    result: GenerateResponse | None
    error: JobFailure | None
    compute_metrics: ComputeMetrics | None
    usage: UsageAmounts | None = Field(description="the bill, once it has ended, however it did")
    links: dict[str, str]

    @classmethod
    def of(cls, job: Job, app: AppStatus | None, images: list[EncodedImage]) -> Self:
        """`app` is the state of the job's app while the job waits or runs."""
        result = GenerateResponse.of(job, job.metrics, images) if job.metrics else None
        links = {"self": f"/v1/jobs/{job.id}", "events": f"/v1/jobs/{job.id}/events"}
        if result:
            links["image"] = f"/v1/jobs/{job.id}/image"
        return cls(
            id=job.id,
            app=job.app,
            model=job.model,
            status=job.status,
            phase=phase(job, app),
            progress=JobProgressBody(step=job.step, steps=job.params.total_steps),
            position=job.position,
            eta_seconds=eta_seconds(job, app),
            attempt=job.attempt,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            result=result,
            error=job.error,
            compute_metrics=job.metrics,
            usage=UsageAmounts.of(job.usage) if job.usage else None,
            links=links,
        )


class JobList(BaseModel):
    """A page of jobs, newest first, without the bytes of their pictures."""

    object: Literal["list"] = "list"
    data: list[JobResponse]
    next_cursor: str | None = Field(
        description="for the next page, which may be empty; null: there is none"
    )


class ModelBody(BaseModel):
    """One app in the OpenAI list shape, with ours beside."""

    id: str = Field(description="the app's name: POST to /{id}/v1/generate")
    object: Literal["model"] = "model"
    created: int = Field(description="Unix seconds: the file's modification time")
    owned_by: Literal["local"] = "local"
    checkpoint: str
    family: str
    route: str
    state: str
    phase: str | None
    reason: str | None = Field(description="why the app is broken")
    width: int
    height: int
    file_bytes: int
    sha256: str | None = Field(description="of the file; null until it has been computed")
    defaults: dict[str, Any]
    schedulers: list[str]
    limits: dict[str, int]
    engine: dict[str, Any] = Field(description="what its deployment decides about its pixels")

    @classmethod
    def of(cls, spec: AppSpec, outlook: AppOutlook, sha256: str | None) -> Self:
        checkpoint, defaults = spec.checkpoint, spec.defaults
        return cls(
            id=spec.name,
            created=checkpoint.file.mtime_ns // 1_000_000_000,
            checkpoint=checkpoint.path.name,
            family=str(checkpoint.kind),
            route=spec.route,
            state=outlook.state,
            phase=outlook.phase,
            reason=outlook.broken_reason,
            width=defaults.width,
            height=defaults.height,
            file_bytes=checkpoint.file.size,
            sha256=sha256,
            defaults={
                "num_inference_steps": defaults.steps,
                "guidance_scale": defaults.guidance_scale,
                "scheduler": defaults.scheduler,
            },
            schedulers=list(defaults.schedulers),
            limits={
                "min_size": defaults.min_size,
                "max_size": defaults.max_size,
                "size_multiple": defaults.size_multiple,
                "step_cache": defaults.max_step_cache,
                "queue": spec.queue_limit,
            },
            engine={
                "precision": spec.precision,
                "exact": spec.exact or not spec.num_gpus,
                "compile": spec.compiles,
                "slots": spec.slots,
            },
        )


class ModelList(BaseModel):
    """The OpenAI list shape."""

    object: Literal["list"] = "list"
    data: list[ModelBody]


class HealthResponse(BaseModel):
    """Whether an app can accept work, and what it is doing."""

    app: str
    state: Annotated[str, Field(description="cold, loading, ready, busy or broken")]
    phase: str | None
    queued: int
    running: int
    replicas: list[ReplicaPresence] | None = Field(
        description="null where API keys are asked for and no admin's is shown"
    )
    reason: str | None = Field(description="why the app is broken")

    @classmethod
    def of(cls, app: str, status: AppStatus, *, has_details: bool) -> Self:
        return cls(
            app=app,
            state=status.state,
            phase=status.phase,
            queued=status.queued,
            running=status.running,
            replicas=list(status.replicas) if has_details else None,
            reason=status.broken_reason,
        )


class GatewayHealth(BaseModel):
    """Whether the gateway reaches the job store."""

    status: Literal["ok"] = "ok"
    apps: int


class ProcessAlive(BaseModel):
    """This process answers."""

    status: Literal["alive"] = "alive"
