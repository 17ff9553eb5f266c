"""Where webhooks may go."""

from ipaddress import IPv6Address, ip_address

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sdserve.errors import InvalidParameterError
from sdserve.webhook_targets import (
    MAX_URL,
    NAT64,
    SIX_TO_FOUR,
    Address,
    WebhookTargets,
    is_public,
)

INTERNET = WebhookTargets()


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/hook?token=x", "https://example.com:8443/", "https://EXAMPLE.com./",
        "https://8.8.8.8/", "https://[2606:4700::1111]/", "https://b\u00fccher.example/",
    ],
)  # fmt: skip
def test_hosts_of_the_internet_are_taken(url: str) -> None:
    assert str(INTERNET.check(url)).startswith("https://")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.com/", "use https"),
        ("ftp://example.com/", "begins with https"),
        ("//example.com/", "begins with https"),
        ("https:///path", "begins with https"),
        ("https://user:secret@example.com/", "user name"),
        ("https://example.com\\@evil.example/", "user name"),
        ("https://example.com/#x", "fragment"),
        ("https://example.com:25/", "port 25"),
        ("https://example.com:99999/", "no port 99999"),
        ("https://example.com:0/", "no port 0"),
        ("https://example.com/" + "x" * MAX_URL, "at most"),
        ("https://example.com/\0", "no URL"),
        ("https://exa mple.com/", "usual form"),
        ("https://ex%61mple.com/", "usual form"),
        ("https://localhost/", "nowhere on the internet"),
        # 127.0.0.1 and its kind, as the C library and IPv6 spell it
        ("https://127.0.0.1/", "nowhere"), ("https://127.0.0.1./", "nowhere"),
        ("https://2130706433/", "usual form"), ("https://0x7f000001/", "usual form"),
        ("https://0x7f.1/", "usual form"), ("https://127.1/", "usual form"),
        ("https://0/", "usual form"), ("https://0177.0.0.1/", "no URL"),
        ("https://\uff11\uff12\uff17.0.0.1/", "no URL"),
        ("https://[::1]/", "nowhere"), ("https://[::]/", "nowhere"),
        ("https://[::ffff:127.0.0.1]/", "nowhere"), ("https://[::127.0.0.1]/", "nowhere"),
        ("https://[64:ff9b::7f00:1]/", "nowhere"), ("https://[2002:7f00:1::]/", "nowhere"),
        ("https://[fe80::1%25eth0]/", "nowhere"), ("https://169.254.169.254/", "nowhere"),
    ],
)  # fmt: skip
def test_other_urls_are_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(InvalidParameterError, match=reason) as caught:
        INTERNET.check(url)
    assert caught.value.field == "webhook"


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254",
        "0.0.0.0",  # noqa: S104 (nothing is bound)
        "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "::1", "::", "fe80::1", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1", "2001::1",
        "100::1", "::10.0.0.1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::1",
        "2002:a00:1::1", "5f00::1",
        # These Python's `is_global` calls global, all of it or from some patch level on.
        "192.0.0.9", "192.0.0.170", "192.31.196.1", "192.52.193.1", "192.88.99.1", "192.175.48.1",
        "2001:0:808:808::1", "2001:4:112::1", "2001:20::1", "2620:4f:8000::1", "3fff::1",
        "3fff:fff:ffff::1", "::ffff:192.0.0.9", "64:ff9b::192.88.99.1", "64:ff9b::169.254.169.254",
        "2002:c000:9::1", "::ffff:0:7f00:1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_of_one_host_on_the_internet(text: str) -> None:
    assert not is_public(ip_address(text))


@given(st.ip_addresses())
def test_nothing_is_public_that_python_knows_better(address: Address) -> None:
    assume(not address.is_global)
    # Python judges these forms by their prefix, we by the address to which they lead.
    leads_elsewhere = isinstance(address, IPv6Address) and (
        address in NAT64 or address in SIX_TO_FOUR or address.ipv4_mapped is not None
    )
    assert leads_elsewhere or not is_public(address)


@pytest.mark.parametrize(
    "text",
    ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"],
)
def test_addresses_on_the_internet(text: str) -> None:
    assert is_public(ip_address(text))


def test_what_the_operator_lists_may_be_anywhere_and_plain() -> None:
    targets = WebhookTargets.parse(" Receiver, 10.1.0.0/16,::1 ")
    for url in (
        "http://receiver:80/", "http://RECEIVER./x", "http://10.1.2.3/", "https://[::1]:22/",
    ):  # fmt: skip
        targets.check(url)
    assert targets.permit("receiver", ip_address("127.0.0.1"))
    assert targets.permit("other.example", ip_address("10.1.2.3"))
    assert not targets.permit("other.example", ip_address("10.2.2.3"))
    for url in ("http://other.example/", "https://10.2.2.3/", "https://sub.receiver.internal:1/"):
        with pytest.raises(InvalidParameterError):
            targets.check(url)


@pytest.mark.parametrize("text", ["10.1.0.1/16", "a b", "300.1.1.1", "https://x.example/", "*"])
def test_a_list_with_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no host name, address or network"):
        WebhookTargets.parse(f"x.example,{text}")
