"""An app: the Serve application of one checkpoint, its name, its specification, its state. Pure."""

import re
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter

from sdserve import __version__
from sdserve.checkpoints import Checkpoint
from sdserve.errors import AppNameCollisionError
from sdserve.families import GenerationDefaults
from sdserve.pace import Pace, Work

GATEWAY = "gateway"  # the app at `/`


class Precision(StrEnum):
    """The numbers that a network computes with."""

    AUTO = "auto"  # what suits the device and the file
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class AppState(StrEnum):
    """What an app can do for a request right now."""

    COLD = "cold"  # no replica: the next job starts one
    LOADING = "loading"  # a replica is starting or reading the checkpoint
    READY = "ready"  # a replica has a free slot
    BUSY = "busy"  # all slots of all replicas are taken
    BROKEN = "broken"  # the checkpoint cannot be loaded; a redeploy heals


@dataclass(frozen=True, kw_only=True)
class AppSpec:
    """All that the cluster needs to run one checkpoint. Equal specs mean nothing to deploy."""

    name: str
    checkpoint: Checkpoint
    defaults: GenerationDefaults
    num_gpus: float  # per replica; fractions share a device; 0 = CPU
    num_cpus: float  # per replica; also its number of OpenMP threads
    min_replicas: int = 0
    max_replicas: int = 1
    idle_timeout: timedelta = timedelta(minutes=5)
    queue_limit: int = 100  # jobs waiting; beyond it a request is refused with 503
    slots: int = 1  # jobs that one replica may denoise together, where that is measured to pay
    precision: Precision = Precision.AUTO
    compiles: bool = False  # the network, beside the jobs, on a GPU
    exact: bool = False  # on a GPU too the model is left as diffusers has it
    version: str = __version__  # of sdserve: an upgrade redeploys

    @property
    def route(self) -> str:
        return f"/{self.name}"

    def to_json(self) -> str:
        return _SPEC.dump_json(self).decode()

    @staticmethod
    def from_json(text: str | bytes) -> "AppSpec":
        return _SPEC.validate_json(text)


@dataclass(frozen=True, kw_only=True)
class LoadProgress:
    """How far a replica's start is."""

    seconds: float  # since it began; as the store tells it, until now
    bytes: int  # of the checkpoint, read so far; a file that is read twice counts half each time
    size: int  # bytes of the checkpoint
    reading_seconds: float  # of `seconds`, from the first byte to the last

    def later(self, seconds: float) -> Self:
        """The same so many seconds after it was told."""
        is_reading = 0 < self.bytes < self.size
        return replace(
            self,
            seconds=self.seconds + seconds,
            reading_seconds=self.reading_seconds + (seconds if is_reading else 0.0),
        )


@dataclass(frozen=True, kw_only=True)
class LoadPace:
    """What the last start of an app's replica took."""

    seconds: float  # process, imports, weights
    reading_seconds: float  # of these, while the checkpoint was being read
    size: int  # bytes of the checkpoint


@dataclass(frozen=True, kw_only=True)
class ReplicaPresence:
    """What a replica says of itself with every heartbeat."""

    id: str
    state: AppState  # LOADING, READY or BUSY
    phase: str  # e.g. "reading file 43%", "ready"
    pid: int
    node: str
    slots: int = 1  # jobs that it runs together: as many as are known to pay
    load: LoadProgress | None = None  # while it is LOADING


@dataclass(frozen=True, kw_only=True)
class RunningWork:
    """A job on a replica, as far as the replica's last word tells it."""

    job_id: str
    owner: str  # replica id
    work: Work | None  # None: not known
    step: int  # done, of work.steps
    seconds: float  # from the claim to that word
    age: float  # seconds since that word


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """The work that a job has before it. Of very many jobs only the first are told one by one."""

    before: str  # the job's id, or the end of the queue: then all that waits is told
    position: int | None  # waiting jobs ahead; None: the job does not wait
    queued: tuple[Work | None, ...]  # the first of those ahead, in order; None: not known
    running: tuple[RunningWork, ...]


@dataclass(frozen=True, kw_only=True)
class AppOutlook:
    """What an app can do, in short."""

    state: AppState = AppState.COLD
    phase: str | None = None  # of its first replica
    broken_reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class AppStatus:
    """An app as the store sees it."""

    state: AppState
    phase: str | None
    queued: int
    running: int
    replicas: tuple[ReplicaPresence, ...]
    broken_reason: str | None = None
    pace: Pace = field(default_factory=Pace)  # what its jobs take
    load: LoadPace | None = None  # what a start takes; None: none was measured
    file_bytes: int | None = None  # of the checkpoint
    wished: bool = False  # somebody asked for a warm replica ahead of traffic (preload)
    device: str = "GPU"  # what a replica needs a free one of: "GPU" or "CPU"
    backlog: Backlog | None = None  # where ViewApp was asked for it


def app_name(checkpoint: Path) -> str:
    """`sd_xl_base_1.0.safetensors` -> `sd-sd-xl-base-1-0`."""
    slug = re.sub(r"[^a-z0-9]+", "-", checkpoint.stem.lower()).strip("-")
    return f"sd-{slug or 'model'}"


def is_app_name(text: str) -> bool:
    """Whether an app may have this name. Cheap: it is asked of whatever a client sends."""
    return _APP_NAME.fullmatch(text) is not None


def name_apps(checkpoints: list[Path]) -> dict[str, Path]:
    """App names of a folder's files.

    Raises:
        AppNameCollisionError: two files collapse to one name.
    """
    named: dict[str, Path] = {}
    for path in checkpoints:
        name = app_name(path)
        if name in named and named[name] != path:
            raise AppNameCollisionError(name, named[name], path)
        named[name] = path
    return named


_APP_NAME = re.compile(r"sd-[a-z0-9-]{1,255}")  # a file's name has no more
_SPEC: TypeAdapter[AppSpec] = TypeAdapter(AppSpec)
