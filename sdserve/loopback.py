"""Whether an address reaches this machine only."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, is loopback. No look-up: other names are not."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def is_address(host: str) -> bool:
    """Whether `host` is an IP address in its usual form, and so no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
