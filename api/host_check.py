"""Requests that a web page makes behind its reader's back are refused. ASGI.

For servers that ask for no API key: there a browser's request is as good as its user's own. A key
is something that a foreign page does not have.
"""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.problems import problem
from sdserve.host_names import HostNames


class HostCheck:
    """Lets in who asks by a name of ours, and from no page of another site."""

    def __init__(self, app: ASGIApp, *, hosts: HostNames) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = headers.get("host", "localhost")  # every browser sends it
        if not self._hosts.may_be_asked(host):
            detail = (
                f"This server asks for no API key and does not go by the name '{host[:100]}': use "
                "its address, or have the name added to SD_ALLOWED_HOSTS."
            )
            await problem(421, "unknown_host", detail)(scope, receive, send)
        elif not self._may_ask(headers, host, scope["method"]):
            detail = (
                "This server asks for no API key and refuses the pages of other sites: open the "
                "page from its own address, or have its host added to SD_ALLOWED_HOSTS."
            )
            await problem(403, "cross_site", detail)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _may_ask(self, headers: Headers, host: str, method: str) -> bool:
        """By what browsers say of themselves; other clients say nothing of it."""
        origin = headers.get("origin")
        if origin is not None:
            return self._hosts.may_ask(origin, host)
        if headers.get("sec-fetch-site") != "cross-site" or self._hosts.is_any:
            return True
        # Somebody followed a link: the other site cannot see where it leads.
        is_link = headers.get("sec-fetch-mode") == "navigate"
        return method == "GET" and is_link and headers.get("sec-fetch-dest") == "document"
