"""A server without Ray: an app and the gateway on one port; a replica that draws at once."""

from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from fastapi import FastAPI
from redis import Redis

from api import gateway, ingress
from api.edge import EdgeSettings
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


def server(settings: EdgeSettings) -> FastAPI:
    """The app under its route, and the gateway, as Serve's proxy serves them."""
    app, rest = ingress.create_app(spec(), settings), gateway.create_app(settings)

    @asynccontextmanager
    async def lifespan(_root: FastAPI) -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            for part in (app, rest):
                await stack.enter_async_context(part.router.lifespan_context(part))
            yield

    root = FastAPI(lifespan=lifespan, openapi_url=None)
    root.mount(f"/{APP}", app)
    root.mount("/", rest)
    return root
