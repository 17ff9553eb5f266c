"""The names by which a server without API keys may be asked. Pure: no name is resolved here.

Whoever can reach such a server may use it, and a web page in a browser of this machine can: under
a name of its own that it lets point here (DNS rebinding), or by requests to another site than its
own.
"""

import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from sdserve.loopback import is_address, is_loopback

ANY = "*"
NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class HostNames:
    """Names that are ours beside those of loopback."""

    names: frozenset[str] = frozenset()  # in lower case, without ports; ANY: nothing is refused

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a comma-separated list.

        Raises:
            ValueError: an entry is no host name.
        """
        names = frozenset(filter(None, (part.strip().lower() for part in text.split(","))))
        for name in names:
            if name != ANY and not is_address(name) and not NAME.fullmatch(name):
                raise ValueError(f"'{name}' is no host name: give names without scheme and port")
        return cls(names=names)

    @property
    def is_any(self) -> bool:
        """Whether nothing is refused."""
        return ANY in self.names

    def may_be_asked(self, host: str) -> bool:
        """Whether a request with this `Host` may be meant for us.

        An address is: a page that came from it cannot let it point elsewhere.
        """
        name = _host_of(f"//{host}")
        return self.is_any or (name is not None and (is_address(name) or self._is_ours(name)))

    def may_ask(self, origin: str, host: str) -> bool:
        """Whether a page of this `Origin` (RFC 6454; "null" too) may ask `host`."""
        name = _host_of(origin)
        if self.is_any:
            return True
        return name is not None and (name == _host_of(f"//{host}") or self._is_ours(name))

    def _is_ours(self, name: str) -> bool:
        return name in self.names or name.endswith(".localhost") or is_loopback(name)


def _host_of(url: str) -> str | None:
    """In lower case, without port and brackets; None where there is none."""
    try:
        return (urlsplit(url).hostname or "").removesuffix(".") or None
    except ValueError:
        return None
