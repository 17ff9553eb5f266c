"""A deployed app without Ray: a replica that draws at once."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis

from sdserve import keys
from sdserve.apps import AppState
from sdserve.operations import ViewApp
from sdserve.store import RedisJobStore
from tests.replica_process import start_replica
from tests.values import APP, replica_settings, spec
from tests.waiting import until


class Gate:
    """Where a replica's jobs wait in their last steps while it is shut."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "gate"
        self.open()

    def open(self) -> None:
        self.file.touch()

    def shut(self) -> None:
        self.file.unlink()


@contextmanager
def warm_replica(redis: Redis, redis_url: str, folder: Path) -> Generator[Gate]:
    """A ready replica of the app in a process of its own."""
    redis.hset(keys.APPS, APP, spec().to_json())
    gate = Gate(folder)
    process = start_replica(spec(), replica_settings(redis_url), gate.file)
    store = RedisJobStore(redis)
    until(lambda: store.run(ViewApp(app=APP)).state is AppState.READY)
    yield gate
    process.kill()
    process.join()
