"""What is deployed, as this process knows it: looked up once, forgotten when it changes."""

from sdserve.apps import AppSpec
from sdserve.async_store import AsyncJobStore


class Registry:
    """The specifications of the apps that were asked for.

    Whoever deploys or deletes an app publishes that in the same step (`RedisJobStore`). What is
    not known is always asked of Redis, so a new app is there at once.
    """

    def __init__(self, store: AsyncJobStore) -> None:
        self._store = store
        self._known: dict[str, AppSpec] = {}
        self._all: dict[str, AppSpec] | None = None  # None: not known
        self._changes = 0  # how many there were
        self._hears = False  # of every change

    async def find(self, app: str) -> AppSpec | None:
        """The specification of an app; None: it is not deployed.

        Raises:
            StoreUnavailableError: that cannot be known.
        """
        if app in self._known:
            return self._known[app]
        changes = self._changes
        spec = await self._store.app(app)
        # Else it may have been read before the change that was heard of meanwhile.
        if spec is not None and changes == self._changes:
            self._known[app] = spec
        return spec

    async def all(self) -> dict[str, AppSpec]:
        """Every deployed app, by name.

        Raises:
            StoreUnavailableError: that cannot be known.
        """
        if self._all is not None and self._hears:
            return self._all
        changes = self._changes
        apps = await self._store.apps()
        if changes == self._changes:
            self._all = apps
        return apps

    def follow(self) -> None:
        """From now on every change is heard of; those before may have been missed."""
        self._hears = True
        self._forget(set(self._known))

    def lose(self) -> None:
        """Changes are not heard of for now."""
        self._hears = False

    def forget(self, app: str) -> None:
        """This app was deployed or deleted."""
        self._forget({app})

    async def refresh(self) -> None:
        """See what has changed unheard. To be called every second or so.

        Raises:
            StoreUnavailableError: so nothing of ours can be deployed or submitted either.
        """
        if self._hears:
            return
        apps = await self._store.apps()
        self._forget({app for app, spec in self._known.items() if apps.get(app) != spec})

    def _forget(self, apps: set[str]) -> None:
        self._changes += 1
        self._all = None
        for app in apps:
            self._known.pop(app, None)
