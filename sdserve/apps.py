"""An app: the Serve application of one checkpoint, its name, its specification, its state. Pure."""

import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from pydantic import TypeAdapter

from sdserve import __version__
from sdserve.checkpoints import Checkpoint
from sdserve.errors import AppNameCollisionError
from sdserve.families import GenerationDefaults

GATEWAY = "gateway"  # the app at `/`


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
    slots: int = 1  # jobs that one replica denoises together
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
class ReplicaPresence:
    """What a replica says of itself with every heartbeat."""

    id: str
    state: AppState  # LOADING, READY or BUSY
    phase: str  # e.g. "reading file 43%", "ready"
    pid: int
    node: str


@dataclass(frozen=True, kw_only=True)
class AppStatus:
    """An app as the store sees it."""

    state: AppState
    phase: str | None
    queued: int
    running: int
    replicas: tuple[ReplicaPresence, ...]
    broken_reason: str | None = None
    seconds_per_job: float | None = None  # moving average of denoise + decode on this app
    load_seconds: float | None = None  # the last measured start: process, imports, weights
    wished: bool = False  # somebody asked for a warm replica ahead of traffic (preload)
    device: str = "GPU"  # what a replica needs a free one of: "GPU" or "CPU"


def app_name(checkpoint: Path) -> str:
    """`sd_xl_base_1.0.safetensors` -> `sd-sd-xl-base-1-0`."""
    slug = re.sub(r"[^a-z0-9]+", "-", checkpoint.stem.lower()).strip("-")
    return f"sd-{slug or 'model'}"


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


_SPEC: TypeAdapter[AppSpec] = TypeAdapter(AppSpec)
