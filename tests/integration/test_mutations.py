"""Whether the tests of the job store would notice: each script broken in one deliberate way."""

import inspect
from collections.abc import Callable

import pytest
from redis import Redis

from sdserve import operations
from sdserve.store import RedisJobStore
from tests.integration import test_job_store
from tests.store_world import World

pytestmark = pytest.mark.integration


# Script -> what the mutation is called, a piece of the script, what a careless hand makes of it.
MUTATIONS: dict[str, list[tuple[str, str, str]]] = {
    "submit": [
        ("no idempotency", "if known[1] then", "if false then"),
        ("any body", "known[2] == digest and", "true and"),
        ("forgets the key", "redis.call('HSET', idem, 'id', id, 'digest', digest)", ""),
        ("repeats itself", "redis.call('EXISTS', job) == 1", "false"),
        ("into a broken app", "if broken then", "if false then"),
        ("no bound of the app", "waiting >= tonumber(ARGV[11])", "false"),
        ("no bound of the server", "tonumber(counts[1] or 0) >= tonumber(ARGV[12])", "false"),
        ("no bound of the client", "tonumber(counts[2] or 0) >= tonumber(ARGV[13])", "false"),
        ("no budget of results", ", budget) > budget", ", 0) < 0"),
        ("counts loading replicas", "and replica.state ~= 'loading'", ""),
        ("counts no leases", "+ redis.call('ZCARD', lease)", ""),
        ("no priorities", "-tonumber(priority) * 1e12", "0"),
        ("no shares", "tonumber(redis.call('HGET', shares, share) or 0)", "0"),
        ("no clock", "tonumber(redis.call('HGET', clock, priority) or 0)", "0"),
        ("no work", "'work', ARGV[17]", "'work', '1 1 1 1 1'"),
    ],
    "claim": [
        ("no clock", "redis.call('HSET', clock, priority, start)", ""),
        ("the old fence", "'HINCRBY', job, 'attempt', 1", "'HINCRBY', job, 'attempt', 0"),
        ("no lease", "redis.call('ZADD', lease, now + tonumber(ARGV[4]), id)", ""),
        ("debts that stay", "redis.call('DEL', shares)", ""),
    ],
    "beat": [
        ("no fence", "and held[2] == ARGV[i + 1]", ""),
        ("for what does not run", "held[1] == 'running' and", ""),
        ("no lease", "redis.call('ZADD', lease, 'XX', now + tonumber(ARGV[2]), ARGV[i])", ""),
        ("deaf to a cancel", "held[3] and 'cancel' or 'ok'", "'ok'"),
        ("blind to failed starts", "other['state'] == 'loading'", "false"),
    ],
    "finish": [
        ("no fence", "held[1] ~= 'running' or held[2] ~= fence", "false"),
        ("of what does not run", "held[1] ~= 'running' or ", ""),
        ("only once", "held[4] == fence", "false"),
        ("past a cancel", "held[3] and 'cancelled' or ARGV[3]", "ARGV[3]"),
        ("keeps the lease", "redis.call('ZREM', lease, id)", ""),
        ("keeps a loser's images", "redis.call('DEL', KEYS[i]) end\n  return 'lost'",
         "redis.call('EXISTS', KEYS[i]) end\n  return 'lost'"),
        ("learns from the cancelled", "if status == 'succeeded' and ARGV[11]", "if ARGV[11]"),
        ("learns for good", "* fading", "* 1"),
        ("learns one line only", "ipairs({'pace_step', 'pace_picture', 'pace_file'})",
         "ipairs({'pace_step'})"),
    ],
    "view_app": [
        ("all that waits", "'ZRANGE', queue, 0, told - 1", "'ZRANGE', queue, 0, -1"),
        ("no bound", "math.min(position or 0, limit)", "position or 0"),
        ("the first has all before it", "told > 0 and", "true and"),
        ("nobody runs", "'ZRANGE', lease, 0, limit - 1", "'ZRANGE', lease, 0, 0, 'REV'"),
        ("silent for ever", "now - last}", "now}"),
    ],
    "release": [
        ("no fence", "or held[2] ~= ARGV[2]", ""),
        ("costs an attempt", "redis.call('HINCRBY', job, 'max_attempts', 1)", ""),
    ],
    "reap": [
        ("finds nothing", "lease, '-inf', now", "lease, '-inf', -1"),
        ("takes leases that run", "'-inf', now,", "'-inf', '+inf',"),
        ("no last attempt", "tonumber(held[2]) >= tonumber(held[3])", "false"),
        ("fails the cancelled", "not held[4] and", ""),
    ],
    "cancel": [
        ("unheard", "if status == 'running' then\n  redis.call('HSET', job, 'cancel', 1)",
         "if status == 'running' then"),
        ("leaves the job in the queue", "redis.call('ZREM', queue, ARGV[1])", ""),
        ("of an end", "elseif status == 'queued' then", "else"),
        ("charges", "redis.call('HINCRBY', shares, charged[1], -charged[2])", ""),
    ],
    "drain": [
        ("breaks nothing", "if ARGV[6] == '1' then", "if false then"),
        ("by an old replica", "then return 0 end", "then end"),
        ("ends nobody", "end_job(ARGV[1] .. id, id, 'failed', now, ARGV[4], app, load, ARGV[5], "
         "{code, message})", ""),
    ],
    "common": [
        ("back to the end of the queue", "redis.call('ZADD', queue, held[1], id)",
         "redis.call('ZADD', queue, 1e9, id)"),
        ("back though cancelled", "held[2] and 'cancelled' or ", ""),
        ("back to a broken app", "broken[2] and 'failed' or ", ""),
        ("an end that counts nothing", "count_job(load, facts[1], facts[2], -1)", ""),
        ("an end that never expires", "redis.call('EXPIRE', job, ttl_s)", ""),
        ("room made from the young", "now - keep_ms,", "'+inf',"),
        ("room never made", "if bytes > budget then", "if false then"),
    ],
}  # fmt: skip


SUITE: list[Callable[[World], None]] = [
    function
    for name, function in vars(test_job_store).items()
    if name.startswith("test_") and inspect.isfunction(function)
]


@pytest.mark.parametrize(
    ("script", "piece", "broken"),
    [
        pytest.param(script, piece, broken, id=f"{script}: {name}")
        for script, mutations in MUTATIONS.items()
        for name, piece, broken in mutations
    ],
)
def test_the_suite_goes_red(
    script: str, piece: str, broken: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_text(name: str) -> str:
        text = operations.script_text(name)
        if script not in (name, "common"):
            return text
        assert text.count(piece) == 1, "the script has changed: change the mutation"
        return text.replace(piece, broken)

    monkeypatch.setattr("sdserve.store.script_text", broken_text)
    assert any(_fails(test, redis) for test in SUITE)


def _fails(test: Callable[[World], None], redis: Redis) -> bool:
    redis.flushdb()
    try:
        test(World(RedisJobStore(redis), redis))
    except (Exception, pytest.fail.Exception):  # noqa: BLE001 (however it goes red)
        return True
    return False
