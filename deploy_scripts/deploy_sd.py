"""The command `deploy_sd.sh`: list, deploy, look at and delete apps of a folder's checkpoints."""

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from deploy_scripts import cluster
from deploy_scripts.api_keys import warn_without_key
from deploy_scripts.command import ensure_store, run_command
from deploy_scripts.deploy import Deployed, Deployer, Wishes
from deploy_scripts.table import print_table
from sdserve.apps import AppSpec, AppStatus, Precision, app_name, name_apps
from sdserve.checkpoints import inspect_checkpoint, list_checkpoints
from sdserve.errors import CheckpointError, CheckpointNotFoundError, StoreUnavailableError
from sdserve.redis_server import find_redis
from sdserve.settings import Settings
from sdserve.store import RedisJobStore, connect
from workers.tasks import enqueue_preload


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(lambda settings: _main(settings, arguments))


def _main(settings: Settings, arguments: Sequence[str] | None) -> int:
    options = _parser(settings).parse_args(arguments)
    folder: Path = options.models_dir
    if options.list:
        return _list(settings, folder)
    if options.status:
        return _status(settings)
    if options.delete:
        return _with_deployer(settings, lambda deployer: _delete(deployer, options.delete))
    if options.all:
        files = list_checkpoints(folder)
        if not files:
            raise CheckpointError(folder, "no .safetensors file in this folder: put some there.")
    else:
        files = [_locate(name, folder) for name in options.files]
    wishes = Wishes(
        gpus=options.gpus,
        cpus=options.cpus,
        min_replicas=options.min_replicas,
        max_replicas=options.max_replicas,
        idle_timeout=timedelta(seconds=options.idle_timeout),
        queue_limit=options.queue_limit,
        slots=options.slots,
        precision=options.precision,
        compiles=options.compile,
        exact=options.exact,
    )
    # A file that cannot be served is told before anything is started for it.
    name_apps([path.absolute() for path in files])
    good, bad = list[Path](), list[CheckpointError]()
    for path in files:
        try:
            inspect_checkpoint(path)
            good.append(path)
        except CheckpointError as error:
            bad.append(error)
            print(f"error: {error}", file=sys.stderr)
    if not good:
        return 1
    outcome = _with_deployer(
        settings,
        lambda deployer: _deploy(settings, deployer, good, wishes, preload=options.preload),
    )
    return outcome or (1 if bad else 0)


def _parser(settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deploy_sd.sh",
        description="Deploy Stable Diffusion .safetensors checkpoints, each as an app of its own "
        "that scales to zero. Deploying one app never touches another; deploying the same "
        "file with the same settings again does nothing.",
        epilog="Environment: RAY_ADDRESS (a running cluster; else a local one is started), "
        "REDIS_URL (else a local Redis is started), SD_MODELS_DIR, SD_HTTP_PORT.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("files", nargs="*", default=[], metavar="FILE", help="checkpoints to deploy")
    what.add_argument("--all", action="store_true", help="deploy every file of the models folder")
    what.add_argument("--list", action="store_true", help="name, family, size, state and route")
    what.add_argument("--status", action="store_true", help="deployed apps: queue and replicas")
    what.add_argument("--delete", metavar="APP", help="delete an app; running jobs end normally")
    parser.add_argument(
        "--models-dir",
        type=Path,
        default=settings.models_dir,
        help="the folder of checkpoints (default %(default)s)",
    )
    parser.add_argument(
        "--gpus", type=_number(0), metavar="N",
        help="GPUs per replica, fractions share one (default 1, or 0 without a GPU)",
    )  # fmt: skip
    parser.add_argument(
        "--cpus", type=_number(0.01), metavar="N", help="CPUs per replica (default 1)"
    )
    parser.add_argument(
        "--preload", action="store_true", help="bring the deployed apps up before their traffic"
    )
    parser.add_argument(
        "--min-replicas", type=_count(0), default=0, metavar="N",
        help="replicas kept without work (default 0)",
    )  # fmt: skip
    parser.add_argument(
        "--max-replicas", type=_count(1), default=1, metavar="N",
        help="replicas at most (default 1)",
    )  # fmt: skip
    parser.add_argument(
        "--slots", type=_count(1), metavar="N",
        help="jobs that a replica may denoise together, where it measures that this pays "
        "(default 8 on a GPU, 1 on a CPU)",
    )  # fmt: skip
    parser.add_argument(
        "--precision", type=Precision, choices=list(Precision), default=Precision.AUTO,
        help="numbers that the network computes with (default: half on a GPU, float32 on a CPU)",
    )  # fmt: skip
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--exact",
        action="store_true",
        help="on a GPU, leave the model as diffusers has it: slower, and bit-exact with it",
    )
    how.add_argument(
        "--compile",
        action="store_true",
        help="on a GPU, compile the network while it serves: no longer bit-exact with diffusers",
    )
    parser.add_argument(
        "--idle-timeout", type=_number(1), default=300, metavar="SECONDS",
        help="idle time before an app scales to zero (default 300)",
    )  # fmt: skip
    parser.add_argument(
        "--queue-limit", type=_count(1), default=100, metavar="N",
        help="waiting jobs before requests are refused with 503 (default 100)",
    )  # fmt: skip
    return parser


def _number(least: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is less than {least:g}")
        return value

    return number


def _count(least: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return value

    return count


def _locate(name: str, folder: Path) -> Path:
    """A file as given, or of that name in the models folder."""
    given = Path(name).expanduser()
    if given.exists() or given.is_absolute():
        return given
    if (folder / given).exists():
        return folder / given
    raise CheckpointNotFoundError(
        given,
        f"there is no such file here or in {folder}: give a path, or set --models-dir "
        "(SD_MODELS_DIR).",
    )


def _with_deployer(settings: Settings, work: Callable[[Deployer], int]) -> int:
    redis_url = ensure_store(settings)
    cluster.connect(settings)
    cluster.refuse_unreachable_redis(redis_url)
    return work(Deployer(settings, redis_url))


def _deploy(
    settings: Settings, deployer: Deployer, files: list[Path], wishes: Wishes, *, preload: bool
) -> int:
    specs = deployer.specify(files, wishes)
    deployer.start_serve()
    deployer.deploy_gateway()
    base = f"http://{settings.http_host}:{settings.http_port}"
    for spec in specs:
        outcome = deployer.deploy(spec)
        print(f"{spec.name}: {outcome} ({spec.checkpoint.kind}, {spec.checkpoint.path})")
        if outcome is not Deployed.UNCHANGED:
            print(f"  POST {base}{spec.route}/v1/generate")
        if preload:
            enqueue_preload(deployer.redis, spec.name, seconds=wishes.idle_timeout.total_seconds())
            print("  an RQ worker was asked to preload it (--status shows the replica)")
    warn_without_key(deployer)
    return 0


def _delete(deployer: Deployer, app: str) -> int:
    failed = deployer.delete(app)
    print(f"{app}: deleted" + (f"; {failed} queued jobs failed (app_gone)" if failed else ""))
    return 0


def _list(settings: Settings, folder: Path) -> int:
    apps, store = _deployed(settings)
    rows = list[list[str]]()
    for path in list_checkpoints(folder):
        name = app_name(path)
        try:
            checkpoint, _ = inspect_checkpoint(path)
            file = checkpoint.file
        except CheckpointError as error:
            rows.append([path.name, "-", "-", "refused", "-", error.reason])
            continue
        sha256 = store.sha256s([file])[0] if store else None
        known = apps.get(name)
        if store is None or known is None:
            state, route = "not deployed", f"/{name}"
        elif known.checkpoint.path != checkpoint.path:
            state, route = "refused", f"its name is taken by {known.checkpoint.path}"
        else:
            state, route = store.app_status(name).state.value, known.route
        kind, size = str(checkpoint.kind), _size(file.size)
        rows.append([path.name, kind, size, state, sha256[:12] if sha256 else "-", route])
    print_table(["FILE", "FAMILY", "SIZE", "STATE", "SHA256", "ROUTE"], rows)
    return 0


def _status(settings: Settings) -> int:
    apps, store = _deployed(settings)
    if store is None:
        raise StoreUnavailableError("No Redis runs, so nothing is deployed: make up starts it.")
    if not cluster.is_running(settings):
        print("note: no Ray cluster runs; the apps below come back with `make up`.")
    rows = list[list[str]]()
    for spec in apps.values():
        status: AppStatus = store.app_status(spec.name)
        detail = status.broken_reason or status.phase or ""
        counts = [str(status.queued), str(status.running), str(len(status.replicas))]
        rows.append([spec.name, status.state.value, *counts, spec.route, detail])
    print_table(["APP", "STATE", "QUEUED", "RUNNING", "REPLICAS", "ROUTE", "DETAIL"], rows)
    return 0


def _deployed(settings: Settings) -> tuple[dict[str, AppSpec], RedisJobStore | None]:
    """The registry, without starting anything for it."""
    redis_url = find_redis(settings)
    if redis_url is None:
        return {}, None
    store = RedisJobStore(connect(redis_url))
    return store.apps(), store


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
