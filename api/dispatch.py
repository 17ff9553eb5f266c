"""Hands a request to the app that its path names. ASGI.

All apps share the processes of the gateway, their connections and their background tasks. An app's
own part is its routes, made when it is first asked for.
"""

from collections import OrderedDict

from fastapi import FastAPI, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api import ingress
from api.edge import Edge
from api.key_check import route_path, split_app
from api.layers import ALIVE
from api.problems import problem_of
from sdserve.apps import AppSpec
from sdserve.errors import StoreUnavailableError

KEPT = 256  # apps whose routes are kept: 0.35 MB and 11 ms each


class Dispatch:
    """Requests of deployed apps go to their routes, all others to `app`."""

    def __init__(self, app: ASGIApp, *, edge: Edge) -> None:
        self._app = app
        self._edge = edge
        self._kept = OrderedDict[str, tuple[AppSpec, FastAPI]]()  # the least recently asked first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name, path = split_app(route_path(scope)) if scope["type"] == "http" else (None, "")
        if name is None:
            await self._app(scope, receive, send)
            return
        root = scope.get("root_path", "")
        try:
            spec = await self._edge.registry.find(name)
        except StoreUnavailableError as error:
            if path == ALIVE:  # this process is, whatever Redis is
                await self._app({**scope, "path": f"{root}{path}"}, receive, send)
            else:
                await problem_of(error, Request(scope))(scope, receive, send)
            return
        if spec is None:
            await self._app(scope, receive, send)
        else:
            await self._routes(spec)({**scope, "root_path": f"{root}/{name}"}, receive, send)

    def _routes(self, spec: AppSpec) -> FastAPI:
        known = self._kept.get(spec.name)
        if known is None or known[0] != spec:
            # Requests that are being answered by the routes of before go on with those.
            known = self._kept[spec.name] = spec, ingress.create_app(spec, self._edge)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(spec.name)
        return known[1]
