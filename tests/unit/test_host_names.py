"""By which names a server without API keys may be asked, and from which pages."""

import pytest

from sdserve.host_names import HostNames
from sdserve.settings import Settings, SettingsError, read_settings

HOSTS = HostNames.parse("sd.example.com, Box")


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST:8000", "localhost.", "sd.localhost:8000", "127.0.0.1:8000",
        "[::1]:8000", "10.1.2.3", "sd.example.com", "SD.Example.com.:443", "box",
    ],
)  # fmt: skip
def test_ours_and_every_address_may_be_asked(host: str) -> None:
    assert HOSTS.may_be_asked(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example",
        "example.com", "x.sd.example.com", "127.1", "2130706433", "", ":8000", "[::1",
    ],
)  # fmt: skip
def test_no_other_name_may(host: str) -> None:
    assert not HOSTS.may_be_asked(host)


def test_a_page_may_ask_where_it_came_from_or_is_ours() -> None:
    assert HOSTS.may_ask("http://10.1.2.3:3000", "10.1.2.3:8000")
    assert HOSTS.may_ask("http://localhost:3000", "127.0.0.1:8000")
    assert HOSTS.may_ask("https://sd.example.com", "127.0.0.1:8000")
    for other in ("null", "https://evil.example", "http://10.9.9.9", "", "http://[::1"):
        assert not HOSTS.may_ask(other, "127.0.0.1:8000")


def test_a_star_refuses_nothing() -> None:
    hosts = HostNames.parse("*")
    assert hosts.may_be_asked("evil.example")
    assert hosts.may_ask("null", "localhost")


def test_the_setting_adds_to_the_servers_own_name() -> None:
    hosts = Settings(http_host="Box", allowed_hosts="sd.example.com").hosts
    assert hosts.may_be_asked("box:8000")
    assert hosts.may_be_asked("sd.example.com")


def test_a_setting_that_is_no_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SD_ALLOWED_HOSTS", "https://sd.example.com")
    with pytest.raises(SettingsError, match="without scheme and port"):
        read_settings()
