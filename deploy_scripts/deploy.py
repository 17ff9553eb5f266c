"""Deploy checkpoints as Serve applications: the code behind deploy_sd.sh. Imports no torch.

The registry of what is deployed is in Redis (`sd:apps`), so that a new Ray cluster can be given
everything the old one had.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from deploy_scripts import cluster
from deploy_scripts.builder import Surroundings, build_app, build_gateway
from sdserve import __version__
from sdserve.apps import GATEWAY, AppSpec, Precision, name_apps
from sdserve.checkpoints import inspect_checkpoint
from sdserve.errors import (
    AppNameCollisionError,
    AppNotFoundError,
    CheckpointError,
    DeployError,
)
from sdserve.jobs import JobFailure
from sdserve.operations import Drain
from sdserve.settings import Settings
from sdserve.store import RedisJobStore, connect
from workers.tasks import enqueue_hash

# A CPU gains at small sizes alone, and would lose that a seed always gives the same bytes
# (docs/decisions/0006-width-from-measurement.md).
GPU_SLOTS = 8
DEPLOY_LOCK_SECONDS = 300  # longer than any deployment; a killed command must not lock for ever


class Deployed(StrEnum):
    """What deploying one file came to."""

    NEW = "deployed"
    CHANGED = "redeployed with new settings"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the command line asks of an app; None leaves the choice to us."""

    gpus: float | None = None
    cpus: float | None = None
    min_replicas: int = 0
    max_replicas: int = 1
    idle_timeout: timedelta = timedelta(minutes=5)
    queue_limit: int = 100
    slots: int | None = None
    precision: Precision = Precision.AUTO
    compiles: bool = False
    exact: bool = False


class Deployer:
    """Deploys to the connected Ray cluster and keeps the registry."""

    def __init__(self, settings: Settings, redis_url: str) -> None:
        self.redis = connect(redis_url, reply_timeout=5)
        self.store = RedisJobStore(self.redis)
        self._settings = settings
        self._redis_url = redis_url

    def start_serve(self) -> None:
        """Start Serve's HTTP proxy unless it runs.

        Raises:
            DeployError: the port is taken; or it runs without API keys, and this command asks for
                them.
        """
        if not cluster.serve_runs():
            self.store.note_key_required(is_required=self._settings.is_key_required)
        elif self._settings.is_key_required and not self.is_key_required:
            raise DeployError(
                "The server runs without API keys, with all that is deployed on it: stop it (make "
                "down) and start it again with SD_AUTH=on."
            )
        cluster.start_serve(self._settings)

    @property
    def is_key_required(self) -> bool:
        """Whether what is deployed now asks for an API key: as it was when Serve was started.

        The environment of a later command may be another; the address of Serve is not.
        """
        return self.store.is_key_required()

    def specify(self, files: Iterable[Path], wishes: Wishes) -> list[AppSpec]:
        """Check files and wishes; nothing is deployed yet.

        Raises:
            CheckpointError, AppNameCollisionError, DeployError.
        """
        cluster = ray.cluster_resources()
        gpus = wishes.gpus
        if gpus is None:
            gpus = 1.0 if cluster.get("GPU") else 0.0
        elif gpus > cluster.get("GPU", 0):
            message = (
                f"--gpus {gpus:g}: the Ray cluster has {cluster.get('GPU', 0):g} GPUs, so no "
                "replica could ever start. Use --gpus 0 to run on the CPU."
            )
            raise DeployError(message)
        cpus = 1.0 if wishes.cpus is None else wishes.cpus
        if cpus > cluster.get("CPU", 0):
            message = f"--cpus {cpus:g}: the Ray cluster has {cluster.get('CPU', 0):g} CPUs."
            raise DeployError(message)
        specs = list[AppSpec]()
        deployed = self.store.apps()
        for name, path in name_apps([path.absolute() for path in files]).items():
            checkpoint, defaults = inspect_checkpoint(path)
            known = deployed.get(name)
            if (
                known
                and known.checkpoint.path != checkpoint.path
                and known.checkpoint.path.exists()
            ):
                raise AppNameCollisionError(name, known.checkpoint.path, checkpoint.path)
            specs.append(
                AppSpec(
                    name=name,
                    checkpoint=checkpoint,
                    defaults=defaults,
                    num_gpus=gpus,
                    num_cpus=cpus,
                    min_replicas=wishes.min_replicas,
                    max_replicas=wishes.max_replicas,
                    idle_timeout=wishes.idle_timeout,
                    queue_limit=wishes.queue_limit,
                    precision=wishes.precision,
                    compiles=wishes.compiles,
                    exact=wishes.exact,
                    slots=wishes.slots or (GPU_SLOTS if gpus else 1),
                )
            )
        return specs

    def deploy(self, spec: AppSpec) -> Deployed:
        """Deploy one app; the same again is a no-op. No other app is touched."""
        with self.redis.lock(f"sd:deploy:{spec.name}", timeout=DEPLOY_LOCK_SECONDS):
            known = self.store.apps().get(spec.name)
            is_running = _is_running(spec.name)
            is_broken = self.store.app_status(spec.name).broken_reason is not None
            if known == spec and is_running and not is_broken:
                return Deployed.UNCHANGED
            if known:  # first, so that a replica of the old version can no longer break the app
                self.store.register_app(spec)
            self.store.heal(spec.name)
            try:
                cluster.run_without_http(build_app(spec, self._surroundings()), spec.name)
            except (RuntimeError, RayError, RayServeException) as error:
                if known:
                    self.store.register_app(known)
                message = f"Ray Serve could not deploy '{spec.name}': {error}"
                raise DeployError(message) from error
            if not known:  # last: what is registered takes jobs, and somebody must draw them
                self.store.register_app(spec)
            cluster.start_standbys()
            if self.store.sha256s([spec.checkpoint.file]) == [None]:
                enqueue_hash(self.redis, spec.checkpoint.path)
            return Deployed.CHANGED if known and is_running else Deployed.NEW

    def deploy_gateway(self) -> None:
        """Deploy the application at `/`, unless it is there: one of its processes may be away."""
        if not _is_there(GATEWAY):
            serve.run(build_gateway(self._surroundings()), name=GATEWAY, route_prefix="/")

    def restore(self) -> list[tuple[AppSpec, str]]:
        """Deploy what the registry has and this cluster lacks. Returns what could not be."""
        failures = list[tuple[AppSpec, str]]()
        for spec in self.store.apps().values():
            try:
                checkpoint, defaults = inspect_checkpoint(spec.checkpoint.path)
                now = replace(spec, checkpoint=checkpoint, defaults=defaults, version=__version__)
                self.deploy(now)
            except (DeployError, CheckpointError) as error:
                failures.append((spec, str(error)))
        return failures

    def delete(self, app: str) -> int:
        """Delete an app. Its running jobs end normally, its queued ones fail (`app_gone`).

        Returns:
            how many queued jobs were failed.

        Raises:
            AppNotFoundError.
        """
        apps = self.store.apps()
        if app not in apps:
            raise AppNotFoundError(app, list(apps))
        # Marked broken in the same step, so that the gateway accepts nothing while it goes away.
        failure = JobFailure(code="app_gone", message=f"The app '{app}' was deleted.")
        drain = Drain(app=app, failure=failure, job_ttl=self._settings.job_ttl, broken=True)
        drained = self.store.drain(drain)
        self.store.unregister_app(app)
        serve.delete(app, _blocking=False)
        return drained

    def _surroundings(self) -> Surroundings:
        return Surroundings.of(
            self._settings, self._redis_url, is_key_required=self.is_key_required
        )


def _is_running(app: str) -> bool:
    return _status(app) == ApplicationStatus.RUNNING


def _is_there(app: str) -> bool:
    """Whether Serve runs it, or mends it."""
    return _status(app) in (ApplicationStatus.RUNNING, ApplicationStatus.UNHEALTHY)


def _status(app: str) -> ApplicationStatus | None:
    status = cluster.serve_status().applications.get(app)
    return None if status is None else status.status
