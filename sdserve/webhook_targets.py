"""Where webhooks may go. Pure: no name is resolved here.

A client names the receiver, and our process connects to it: what only this machine or its network
can reach must not be reached that way (server-side request forgery), unless the operator allows it.
"""

import re
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Self

import httpx

from sdserve.errors import InvalidParameterError
from sdserve.host_names import NAME

Address = IPv4Address | IPv6Address

MAX_URL = 2048  # characters
HTTPS_PORT = 443
FIRST_FREE_PORT = 1024  # below are ports of system services, such as mail

# Special-purpose addresses (the IANA registries of RFC 6890, and multicast), as of 2026-11: our own
# list, for what Python's `is_global` knows of them depends on its patch level. Blocks that the
# registries call global are here too: anycast and infrastructure, no one host's.
SPECIAL = tuple(
    ip_network(block)
    for block in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
        "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24",
        "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24",
        "203.0.113.0/24", "224.0.0.0/3",
        "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID
        "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20",
    )
)  # fmt: skip
GLOBAL_UNICAST = IPv6Network("2000::/3")  # all that IANA hands out (RFC 4291 §2.4)
NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
SIX_TO_FOUR = IPv6Network("2002::/16")  # RFC 3056: bits 16 to 48 are one


@dataclass(frozen=True, kw_only=True)
class WebhookTargets:
    """Receivers on the internet, and those that the operator allows beside them."""

    hosts: frozenset[str] = frozenset()  # names in lower case; whatever they resolve to
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a comma-separated list of host names, addresses and networks (CIDR).

        Raises:
            ValueError: an entry is none of these.
        """
        hosts, networks = set[str](), list[IPv4Network | IPv6Network]()
        for entry in filter(None, (part.strip().lower() for part in text.split(","))):
            try:
                networks.append(ip_network(entry))
            except ValueError:
                if not NAME.fullmatch(entry) or _ends_in_number(entry):
                    message = f"'{entry}' is no host name, address or network"
                    raise ValueError(message) from None
                hosts.add(entry)
        return cls(hosts=frozenset(hosts), networks=tuple(networks))

    def check(self, text: str) -> httpx.URL:
        """The URL of a receiver, normalised.

        Raises:
            InvalidParameterError: no webhook goes there; of the parameter `webhook`.
        """
        url = _url(text)
        host = _host(url)
        address = _address(host)
        if self._is_allowed(host, address):
            return url
        if url.scheme == "http":
            raise _refused("http is refused: use https")
        if "." not in host if address is None else not is_public(address):
            raise _refused(f"{host} is nowhere on the internet, and SD_WEBHOOK_ALLOW lacks it")
        port = HTTPS_PORT if url.port is None else url.port
        if port != HTTPS_PORT and port < FIRST_FREE_PORT:
            raise _refused(f"port {port} is refused: use {HTTPS_PORT}, or {FIRST_FREE_PORT} and up")
        return url

    def permit(self, host: str, address: Address) -> bool:
        """Whether a webhook to `host` may go to this address of it."""
        return self._is_allowed(host.lower().removesuffix("."), address) or is_public(address)

    def _is_allowed(self, host: str, address: Address | None) -> bool:
        if host in self.hosts:
            return True
        return address is not None and any(address in network for network in self.networks)


def is_public(address: Address) -> bool:
    """Whether this is the address of one host on the internet.

    An IPv6 form that leads to an IPv4 address is what that address is.
    """
    inner = _inner(address) if isinstance(address, IPv6Address) else None
    if inner is not None:
        return is_public(inner)
    is_special = any(address in block for block in SPECIAL)
    return not is_special and (isinstance(address, IPv4Address) or address in GLOBAL_UNICAST)


def _inner(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address to which packets for this one go."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address in SIX_TO_FOUR:
        return IPv4Address(int(address) >> 80 & 0xFFFFFFFF)
    return None


def _url(text: str) -> httpx.URL:
    if len(text) > MAX_URL:
        raise _refused(f"a URL has at most {MAX_URL} characters")
    try:
        url = httpx.URL(text)
        host = url.host  # decodes what is written as xn--...
    except (httpx.InvalidURL, UnicodeError) as error:
        raise _refused(f"this is no URL ({error})") from error
    if url.scheme not in ("https", "http") or not host:
        raise _refused("give a whole URL that begins with https://")
    if "@" in url.netloc.decode("ascii") or url.userinfo:
        raise _refused("a URL with a user name is refused: put a token into its path or query")
    if url.port is not None and not 0 < url.port < 65536:
        raise _refused(f"there is no port {url.port}")
    if url.fragment:
        raise _refused("a URL with a fragment (#) is refused: no receiver would see it")
    return url


def _host(url: httpx.URL) -> str:
    host = url.raw_host.decode("ascii").lower().removesuffix(".")
    if _address(host) is None and (not NAME.fullmatch(host) or _ends_in_number(host)):
        raise _refused(f"'{host}' is neither a host name nor an address in its usual form")
    return host


def _address(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _ends_in_number(host: str) -> bool:
    """As the WHATWG URL standard has it: such a host is an IPv4 address in some spelling.

    The C library reads 2130706433, 0x7f.1 and 0177.0.0.1 as 127.0.0.1.
    """
    last = host.rpartition(".")[2]
    return re.fullmatch(r"[0-9]+|0x[0-9a-f]*", last) is not None


def _refused(message: str) -> InvalidParameterError:
    return InvalidParameterError("webhook", message)
