"""Who asks is known before anything of his request is read. ASGI."""

from collections.abc import Collection

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.caller import Callers
from api.problems import problem_of
from sdserve.errors import SdServeError


class KeyCheck:
    """Lets in who may ask (`request.state.caller`), to all paths but `open_paths`: there, all."""

    def __init__(self, app: ASGIApp, *, callers: Callers, open_paths: Collection[str]) -> None:
        self._app = app
        self._callers = callers
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and route_path(scope) not in self._open:
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
