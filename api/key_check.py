"""Who asks is known before anything of his request is read. ASGI."""

from collections.abc import Collection

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.caller import Callers
from api.problems import problem_of
from sdserve.apps import is_app_name
from sdserve.errors import SdServeError


class KeyCheck:
    """Lets in who may ask (`request.state.caller`), to all paths but `open_paths`: there, all.

    Those are paths of the gateway, and of each app below its name.
    """

    def __init__(self, app: ASGIApp, *, callers: Callers, open_paths: Collection[str]) -> None:
        self._app = app
        self._callers = callers
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and split_app(route_path(scope))[1] not in self._open:
            request = Request(scope)
            try:
                request.state.caller = await self._callers.admit(request)
            except SdServeError as error:
                await problem_of(error, request)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def route_path(scope: Scope) -> str:
    """The path below the application's own prefix, as routes have it."""
    path: str = scope["path"]
    rest = path.removeprefix(scope.get("root_path", ""))
    return rest if rest.startswith("/") or not rest else path


def split_app(path: str) -> tuple[str | None, str]:
    """The app that a path begins with, if any, and the path below it."""
    name, _, rest = path[1:].partition("/")
    return (name, f"/{rest}") if is_app_name(name) else (None, path)
