"""Redis killed, cut, replaced, stopped, flushed and sent through time, under load at the store."""

import platform
import sys
import time
from pathlib import Path

import pytest

from tests.faults.checker import check, check_consistency
from tests.faults.history import History, Struck
from tests.faults.light_client import LightClient
from tests.faults.light_replica import LEASE
from tests.faults.light_stack import LightStack
from tests.faults.redis_process import RedisProcess

pytestmark = pytest.mark.faults

JOBS = 100


def strike(history: History, kind: str) -> None:
    """Note a fault of Redis itself: any running job's lease may run out over it."""
    history.add(Struck(at=time.time(), kind=kind, loses_replica=True))


@pytest.mark.parametrize("fsync", ["everysec", "always"])
def test_a_killed_redis_loses_nothing_that_was_acknowledged(
    tmp_path: Path, history: History, fsync: str
) -> None:
    server = RedisProcess(tmp_path / "redis", fsync=fsync)
    server.start()
    kills = 0

    def kill() -> None:
        nonlocal kills
        kills += 1
        strike(history, "kill redis")
        server.kill()
        time.sleep(stack.random.uniform(0, 0.5))
        server.start()

    try:
        with LightStack(history, server.url, seed=3) as stack:
            stack.until_accepted(JOBS, kill, 0.7)
            facts = stack.settle()
    finally:
        server.kill()
    assert check(facts) == []
    assert kills >= 2


def test_a_redis_that_forgot_its_last_bytes_is_whole(
    server: RedisProcess, tmp_path: Path, history: History
) -> None:
    """Power loss with `everysec`: the file ends anywhere. What it still tells is consistent."""
    with LightStack(history, server.url, seed=4) as stack:
        stack.until_accepted(JOBS, stack.kill_replica, 0.3)
        server.kill()
        size = server.tail.stat().st_size
        cuts = [stack.random.randrange(1, size // 2) for _ in range(3)]
        stack.crash()
    for number, cut in enumerate(cuts):
        twin = server.copy(tmp_path / f"twin {number}", cut=cut)
        twin.start()
        later = History(tmp_path / f"history {number}.jsonl")
        # Each loss of the past counts for what is left of it.
        for event in history.events():
            later.add(event)
        strike(later, "power loss")
        try:
            with LightStack(later, twin.url, seed=number, clients=0) as rest:
                facts = rest.settle()
        finally:
            twin.kill()
            later.close()
        assert check_consistency(facts) == []
        assert facts.snapshot.jobs


def test_a_flushed_script_cache_and_a_pausing_redis_harm_nobody(
    server: RedisProcess, history: History
) -> None:
    with server.client() as redis, LightStack(history, server.url, seed=5) as stack:

        def disturb() -> None:
            redis.script_flush()
            strike(history, "pause redis")
            # Up to twice the lease: longer than every time-out of the clients.
            redis.client_pause(int(stack.random.uniform(0.1, 2) * LEASE.total_seconds() * 1000))

        stack.until_accepted(JOBS, disturb, 0.7)
        facts = stack.settle()
    assert check(facts) == []


def test_after_a_failover_to_a_replica_what_arrived_there_is_whole(
    server: RedisProcess, tmp_path: Path, history: History
) -> None:
    """Replication is asynchronous: an acknowledged job may be missing. None is half there."""
    follower = RedisProcess(
        tmp_path / "follower", options=["--replicaof", f"127.0.0.1 {server.port}"]
    )
    follower.start()
    try:
        with follower.client() as redis:
            deadline = time.monotonic() + 60
            while redis.info("replication")["master_link_status"] != "up":
                assert time.monotonic() < deadline
                time.sleep(0.02)
            with LightStack(history, server.url, seed=6) as stack:
                stack.until_accepted(JOBS, stack.kill_replica, 0.3)
                server.kill()
                stack.crash()
            redis.replicaof("NO", "ONE")
            strike(history, "failover")
            with LightStack(history, follower.url, seed=7, clients=0) as rest:
                facts = rest.settle()
    finally:
        follower.kill()
    assert check_consistency(facts) == []
    assert facts.snapshot.jobs


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="libfaketime's package has a library for this platform only",
)
def test_a_jumping_server_clock_costs_attempts_not_jobs(tmp_path: Path, history: History) -> None:
    import libfaketime

    library = Path(libfaketime.__file__).parent / "vendor/libfaketime/src/libfaketime.so.1"
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    server = RedisProcess(
        tmp_path / "redis",
        environment={
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        },
    )
    server.start()
    # Forwards all leases run out at once; backwards they last a minute longer, until the next jump.
    jumps = 0

    def jump() -> None:
        nonlocal jumps
        jumps += 1
        strike(history, "clock jump")
        clock.write_text(f"+{30 * (jumps % 3)}\n")

    try:
        with LightStack(history, server.url, seed=8) as stack:
            stack.until_accepted(JOBS, jump, 0.7)
            clock.write_text("+90\n")
            with server.client() as redis:
                ahead = redis.time()[0] - time.time()
            facts = stack.settle()
    finally:
        server.kill()
    assert 85 < ahead < 95, "libfaketime has no effect here"
    assert check(facts) == []


def test_a_redis_that_is_away_is_told_within_the_time_outs(history: History) -> None:
    client = LightClient("alone", ("sd-a",), "redis://127.0.0.1:1/0", history)
    start = time.monotonic()
    assert client.submit("sd-a", "innocent", 1) is None
    assert time.monotonic() - start < 5
