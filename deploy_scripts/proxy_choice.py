"""Which proxy takes the requests of a local cluster: chosen when it starts."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from deploy_scripts import haproxy
from sdserve.errors import DeployError
from sdserve.settings import Proxy, Settings


@dataclass(frozen=True, kw_only=True)
class ProxyChoice:
    """The proxy that runs, and why it is not HAProxy."""

    proxy: Proxy  # never AUTO
    reason: str = ""

    @classmethod
    def make(cls, settings: Settings) -> Self:
        """As the settings wish and the machine allows.

        Raises:
            DeployError: they insist on HAProxy, which cannot be used.
        """
        if settings.proxy is Proxy.SERVE:
            return cls(proxy=Proxy.SERVE, reason="SD_PROXY=serve")
        reason = haproxy.why_not(settings.http_host)
        if reason is None:
            return cls(proxy=Proxy.HAPROXY)
        if settings.proxy is Proxy.HAPROXY:
            message = f"HAProxy cannot be used: {reason}. Mend that, or leave SD_PROXY out."
            raise DeployError(message)
        return cls(proxy=Proxy.SERVE, reason=reason)

    @classmethod
    def load(cls, file: Path) -> Self | None:
        """What `save` wrote; None: it has written nothing."""
        try:
            fields = json.loads(file.read_text())
        except FileNotFoundError:
            return None
        return cls(proxy=Proxy(fields["proxy"]), reason=fields["reason"])

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)))

    def __str__(self) -> str:
        if self.proxy is Proxy.HAPROXY:
            return "HAProxy"
        return f"Serve's own ({self.reason})"
