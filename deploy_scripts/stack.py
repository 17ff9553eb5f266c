"""The whole stack on one machine: Redis, Ray with the gateway, RQ workers, every registered app.

`up` twice starts nothing twice; `down` stops what `up` started, by pid.
"""

import argparse
import os
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from deploy_scripts import cluster
from deploy_scripts.api_keys import warn_without_key
from deploy_scripts.command import ensure_store, run_command
from deploy_scripts.deploy import Deployer, Wishes
from deploy_scripts.proxy_choice import ProxyChoice
from sdserve.checkpoints import list_checkpoints
from sdserve.daemon import Daemon
from sdserve.redis_server import find_redis, stop_redis
from sdserve.settings import Settings
from workers.task_queue import QueueName

DEMO_MODELS = Path(__file__).parent.parent / "demo_models"
WORKER_PATIENCE = 15.0  # seconds for an RQ worker to end its task


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="stack", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("up", help="start all of it")
    start.add_argument("--demo", action="store_true", help="also deploy the demo checkpoints")
    start.add_argument("--no-worker", action="store_true", help="RQ workers run elsewhere")
    start.add_argument(
        "--foreground", action="store_true", help="stay, and stop all of it on SIGTERM or Ctrl-C"
    )
    commands.add_parser("down", help="stop all of it")
    commands.add_parser("status", help="what runs")
    commands.add_parser(
        "node-env", help="for a Ray cluster of your own: what each node's `ray start` must see"
    )
    options = parser.parse_args(arguments)

    def work(settings: Settings) -> int:
        match options.command:
            case "up":
                up(settings, demo=options.demo, worker=not options.no_worker)
                return _stay(settings) if options.foreground else 0
            case "down":
                return down(settings)
            case "node-env":
                return print_node_environment(settings)
            case _:
                return status(settings)

    return run_command(work)


def up(settings: Settings, *, demo: bool, worker: bool = True) -> Deployer:
    """Start what does not run yet. Returns the connected deployer."""
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    print("starting Redis ...", flush=True)
    redis_url = ensure_store(settings)
    print("starting Ray ...", flush=True)
    cluster.connect(settings)
    cluster.refuse_unreachable_redis(redis_url)
    deployer = Deployer(settings, redis_url)
    deployer.start_serve()
    print(f"proxy: {cluster.proxy_choice(settings) or cluster.running_proxy()}")
    print("starting the gateway ...", flush=True)
    deployer.deploy_gateway()
    if worker:
        for queue in QueueName:
            _start_worker(settings, queue, redis_url)
    for spec, reason in deployer.restore():
        print(f"warning: {spec.name} was not deployed again: {reason}", file=sys.stderr)
    if demo:
        for spec in deployer.specify(list_checkpoints(DEMO_MODELS), Wishes()):
            print(f"deploying {spec.name} ...", flush=True)
            if spec.name not in deployer.store.apps():
                deployer.deploy(spec)
    warn_without_key(deployer)
    print(f"up: http://{settings.http_host}:{settings.http_port} (state in {settings.state_dir})")
    return deployer


def down(settings: Settings) -> int:
    """Stop what `up` started. Jobs and results stay in Redis' data folder for the next `up`."""
    workers = [_stop_worker(settings, queue) for queue in QueueName]
    had_ray = cluster.stop_local(settings)
    had_redis = stop_redis(settings)
    print("down" if any(workers) or had_ray or had_redis else "nothing was running")
    return 0


def status(settings: Settings) -> int:
    """What runs. Exit code 0 when all of it does."""
    parts = {
        "redis": find_redis(settings) is not None,
        "ray": cluster.is_running(settings),
    }
    for queue in QueueName:
        parts[f"rq worker ({queue})"] = Daemon.find(_worker_record(settings, queue)) is not None
    for name, runs in parts.items():
        print(f"{name}: {'running' if runs else 'stopped'}")
    if choice := cluster.proxy_choice(settings):
        print(f"proxy: {choice}")
    return 0 if all(parts.values()) else 1


def print_node_environment(settings: Settings) -> int:
    """Shell commands that set the environment for `ray start` on this node."""
    choice = ProxyChoice.make(settings)
    print(f"# proxy: {choice}")
    for name, value in cluster.node_environment(settings, choice).items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def _start_worker(settings: Settings, queue: QueueName, redis_url: str) -> None:
    record = _worker_record(settings, queue)
    if Daemon.find(record) is not None:
        return
    print(f"starting an RQ worker for {queue} ...", flush=True)
    Daemon.start(
        [sys.executable, "-m", "workers.main", queue],
        record=record,
        log=record.with_suffix(".log"),
        environment={**os.environ, "REDIS_URL": redis_url},
    )


def _stop_worker(settings: Settings, queue: QueueName) -> bool:
    """False: it did not run."""
    record = _worker_record(settings, queue)
    worker = Daemon.find(record)
    if worker is not None:
        worker.stop(patience=WORKER_PATIENCE)
        record.unlink(missing_ok=True)
    return worker is not None


def _stay(settings: Settings) -> int:
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: told.set())
    told.wait()
    return down(settings)


def _worker_record(settings: Settings, queue: QueueName) -> Path:
    return settings.state_dir / f"rq-{queue}.json"


if __name__ == "__main__":
    sys.exit(main())
