"""What is asked of a checkpoint and what comes back: frozen values that cross every boundary."""

import json
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from pydantic import TypeAdapter

MAX_IMAGES = 8  # of a job


class ImageFormat(StrEnum):
    """How the images of a result are encoded. `base64` is PNG, as the first clients knew it."""

    BASE64 = "base64"
    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def media_type(self) -> str:
        return "image/png" if self is ImageFormat.BASE64 else f"image/{self.value}"


@dataclass(frozen=True, kw_only=True)
class GenerationParams:
    """Everything that reproduces a picture; no field is left to a default of somebody else."""

    prompt: str
    negative_prompt: str
    num_inference_steps: int
    guidance_scale: float
    width: int  # pixels
    height: int  # pixels
    seed: int  # 0..2^32-1; image k of a job is drawn from seed + k (mod 2^32)
    scheduler: str  # a name of sdserve.families.SCHEDULERS
    num_images: int  # 1..MAX_IMAGES
    format: ImageFormat
    step_cache: int = 1  # calls of the network of which only the first is whole; 1: all are

    @property
    def total_steps(self) -> int:
        return self.num_inference_steps * self.num_images

    def to_json(self) -> str:
        """As the store keeps it: values in their order, for the names would be half of a job."""
        values = [getattr(self, name) for name in _NAMES]
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))

    @staticmethod
    def from_json(text: str | bytes) -> "GenerationParams":
        values = json.loads(text)
        # A job that an earlier version stored lacks the last ones, which have a default.
        is_known = len(values) <= len(_NAMES)
        return _PARAMS.validate_python(dict(zip(_NAMES, values, strict=not is_known)))

    def to_dict(self) -> dict[str, Any]:
        """The `parameters` object of a response: JSON values only."""
        return _PARAMS.dump_python(self, mode="json")


@dataclass(frozen=True, kw_only=True)
class ComputeMetrics:
    """The bill of one job. GPU fields are None on a replica without a GPU, never invented.

    `query_duration_seconds` runs from acceptance to the last encoded image: the sum of queue, load,
    encode, denoise, decode and image_encode seconds, plus bookkeeping of milliseconds.
    """

    query_duration_seconds: float
    replica_cpu_percent: float  # of one core, over this job
    replica_memory_mb: float  # resident set, MiB
    replica_num_cpus: float
    precision: str = ""  # of the network: "float32", "float16" or "bfloat16"
    replica_gpu_memory_allocated_mb: float | None = None  # torch's live tensors
    replica_gpu_memory_reserved_mb: float | None = None  # torch's pool
    replica_gpu_memory_total_mb: float | None = None  # the device, by NVML
    replica_gpu_memory_used_mb: float | None = None  # all processes on the device, by NVML
    replica_gpu_utilization_percent: float | None = None  # NVML's average of the last second
    compiled: bool = False  # a compiled network may have had a part in it
    exact: bool = False  # bit for bit what plain diffusers draws on this device at this precision
    queue_seconds: float = 0.0  # waiting for a free slot
    load_seconds: float = 0.0  # waiting for this replica to start and load
    encode_seconds: float = 0.0  # text encoders
    prompts_cached: int = 0  # pictures whose prompts were encoded for an earlier one
    denoise_seconds: float = 0.0  # all steps of all images
    decode_seconds: float = 0.0  # VAE
    image_encode_seconds: float = 0.0  # PNG, JPEG or WebP
    seconds_per_step: float = 0.0  # denoise_seconds / steps taken
    cpu_seconds: float = 0.0  # user + system time of this job's work, its share in a batch
    gpu_seconds: float | None = None  # of this job's work, its share in a batch
    gpu_energy_joules: float | None = None  # of the board, over the same work
    energy_quality: str | None = None  # "measured", "interpolated", "estimated", "shared"
    # The most that the replica held while this job's work ran: with the weights, and with what
    # other jobs on the replica held then.
    peak_gpu_memory_mb: float | None = None  # torch's live tensors
    peak_gpu_memory_reserved_mb: float | None = None  # torch's pool
    replica_id: str = ""
    node: str = ""


@dataclass(frozen=True, kw_only=True)
class EncodedImage:
    """One picture of a result as bytes of its format."""

    data: bytes = field(repr=False)
    media_type: str
    seed: int


_NAMES = tuple(field.name for field in fields(GenerationParams))
_PARAMS: TypeAdapter[GenerationParams] = TypeAdapter(GenerationParams)
