"""The proxy does to bytes what it says: else the tests behind it attack nothing."""

import time
from collections.abc import Iterator

import pytest
from redis import Redis
from redis.exceptions import ConnectionError, TimeoutError  # noqa: A004

from tests.faults.redis_process import RedisProcess
from tests.faults.tcp_proxy import CALM, TcpProxy, Weather

pytestmark = pytest.mark.faults


@pytest.fixture
def proxy(server: RedisProcess) -> Iterator[TcpProxy]:
    with TcpProxy(server.port) as proxy:
        yield proxy


def client(proxy: TcpProxy, patience: float = 30) -> Redis:
    return Redis.from_url(proxy.url, socket_timeout=patience, retry=None)


def test_calm_weather_changes_nothing(proxy: TcpProxy) -> None:
    value = bytes(range(256)) * 4096
    with client(proxy) as redis:
        redis.set("key", value)
        assert redis.get("key") == value


def test_a_black_hole_towards_the_server_swallows_the_request_until_it_is_over(
    server: RedisProcess, proxy: TcpProxy
) -> None:
    with client(proxy, 0.3) as far, server.client() as near:
        far.ping()
        proxy.set(Weather(hold_requests=True))
        with pytest.raises(TimeoutError):
            far.incr("count")
        assert near.get("count") is None
        proxy.set(CALM)
        far.incr("count")


def test_a_black_hole_back_hides_what_was_done(server: RedisProcess, proxy: TcpProxy) -> None:
    with client(proxy, 1) as far, server.client() as near:
        far.ping()
        proxy.set(Weather(hold_replies=True))
        with pytest.raises(TimeoutError):
            far.incr("count")
        assert near.get("count") == b"1"


def test_a_cut_reply_is_an_error_after_the_deed(server: RedisProcess, proxy: TcpProxy) -> None:
    with client(proxy) as far, server.client() as near:
        far.ping()
        proxy.set(Weather(cut_replies=True))
        with pytest.raises(ConnectionError):
            far.incr("count")
        assert near.get("count") == b"1"


def test_delay_and_drip_are_slow_and_complete(proxy: TcpProxy) -> None:
    with client(proxy) as redis:
        redis.set("key", b"x" * 1000)
        proxy.set(Weather(delay=0.3))
        start = time.monotonic()
        assert redis.ping()
        assert time.monotonic() - start >= 0.6
        proxy.set(Weather(drip=100))
        start = time.monotonic()
        assert redis.get("key") == b"x" * 1000
        assert time.monotonic() - start >= 0.1


def test_a_dead_server_is_a_closed_connection(server: RedisProcess, proxy: TcpProxy) -> None:
    server.kill()
    with client(proxy) as redis, pytest.raises(ConnectionError):
        redis.ping()
