"""Whether the tests of the job store would notice: each script broken in one deliberate way."""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from redis import Redis

import sdserve
from sdserve import operations
from sdserve.store import RedisJobStore
from tests.integration import test_api_keys, test_batch_store, test_job_list, test_job_store
from tests.store_world import World

pytestmark = pytest.mark.integration


# Script -> what the mutation is called, a piece of the script, what a careless hand makes of it.
MUTATIONS: dict[str, list[tuple[str, str, str]]] = {
    "submit": [
        ("no idempotency", "if known then", "if false then"),
        ("any body", "as == digest and", "true and"),
        ("forgets the key", "redis.call('SET', idem, id .. ' ' .. digest, 'EX', ARGV[6])", ""),
        ("repeats itself", "redis.call('EXISTS', job) == 1", "false"),
        ("into a broken app", "if broken then", "if false then"),
        ("no bound of the app", "waiting >= tonumber(ARGV[11])", "false"),
        ("no bound of the server", "all >= tonumber(ARGV[12])", "false"),
        ("no bound of the client", "over(ARGV[13], jobs + 1)", "false"),
        ("no bound of the client's queue", "over(ARGV[24], queued + 1)", "false"),
        ("no images of the day", "over(ARGV[25], drawn + images)", "false"),
        ("one image of a job", "over(ARGV[25], drawn + images)", "over(ARGV[25], drawn + 1)"),
        ("forgets drawn images", "tonumber(spent[1] or 0) +", "0 +"),
        ("forgets images asked for", "+ tonumber(counts[5] or 0)", ""),
        ("no GPU seconds of the day", "gpu_ms >= ARGV[26] * 1000", "false"),
        ("quotas for the nameless", "if client ~= '' then", "if true then"),
        ("not listed", "redis.call('ZADD', mine, now, id)", ""),
        ("not counted as queued", "client, 1, true, images)", "client, 1, false, images)"),
        ("no bound of webhooks", "if hooks then", "if false then"),
        ("no word of what is left", "hooks, has}", "hooks}"),
        ("no budget of results", ", budget) > budget", ", 0) < 0"),
        ("counts loading replicas", "and replica.state ~= 'loading'", ""),
        ("counts no leases", "+ redis.call('ZCARD', lease)", ""),
        ("no shares", "end_of_flow(shares, flow, priority)", "0"),
        ("no clock", "tonumber(redis.call('HGET', clock, 'steps') or 0)", "0"),
        ("urgent work for nothing", "shift_lower(shares, flow, priority, start, ARGV[10])", ""),
        ("no work", "'work', ARGV[27]", "'work', '1 1 1 1 1'"),
        ("any turn of a line", "(place[2] or '0') ~= ARGV[21]", "false"),
        ("into a closed batch", "not place[1] or place[3]", "not place[1]"),
        ("a line that keeps its turn", "redis.call('HSET', batch, 'last:' .. ARGV[2], ARGV[20])",
         ""),
        ("no share of its own", "(batch and ':batch' or '')", "''"),
    ],
    "create_batch": [
        ("no idempotency", "if known[1] and known[1] ~= id then", "if false then"),
        ("any upload", "known[2] == digest and", "true and"),
        ("repeats itself", "redis.call('EXISTS', batch) == 1", "false"),
        ("lines of any length", "math.ceil(bytes / ARGV[9])", "0"),
        ("without its parts", "redis.call('EXISTS', KEYS[4 + part]) == 0", "false"),
        ("no bound", "unfinished + room > tonumber(ARGV[10])", "false"),
        ("no bound of webhooks", "if hooks then", "if false then"),
        ("no bound of the client", "mine + room > tonumber(ARGV[11])", "false"),
        ("drops nobody", "redis.call('UNLINK', key)", ""),
        ("drops another's first", "{own, others}", "{others, own}"),
        ("keeps what it refuses", "redis.call('UNLINK', KEYS[4 + part])", ""),
        ("drops all that have ended", "if all + room <= tonumber(ARGV[10]) then break end", ""),
        ("unfed", "redis.call('ZADD', open, now, id)", ""),
    ],
    "close_lines": [
        ("again and again", "redis.call('HSETNX', batch, 'rest:' .. app, ARGV[2]) == 1",
         "redis.call('HSET', batch, 'rest:' .. app, ARGV[2])"),
        ("of every app", "ARGV[1] == '' or ARGV[1] == app", "true"),
        ("counts what was fed", "- (lines[2] or 0)", ""),
        ("no word of the cancel", "redis.call('HSETNX', batch, 'cancel', now)", ""),
    ],
    "fail_line": [
        ("any turn", " or (place[2] or '0') ~= ARGV[3]", ""),
        ("of a closed app", " or place[3] or", " or"),
        ("keeps its turn", "redis.call('HSET', batch, 'last:' .. app, line)", ""),
        ("not handed over", "redis.call('HINCRBY', batch, 'fed:' .. app, 1)", ""),
        ("for no reason", "keep_outcome(batch, tonumber(line), ARGV[4])", ""),
        ("not counted", "end_lines(batch, 'failed', 1, server_ms(), ARGV[5])", ""),
    ],
    "pack_part": [
        ("any part", "(facts[1] or '0') ~= ARGV[2]", "false"),
        ("any results", "redis.call('HLEN', KEYS[2]) ~= tonumber(ARGV[3])", "false"),
        ("kept for ever", "if left > 0 then", "if false then"),
        ("never done", "redis.call('HINCRBY', batch, 'packed', 1) == tonumber(facts[2])", "false"),
    ],
    "claim": [
        ("no clock", "redis.call('HSET', clock, 'steps', start)", ""),
        ("nothing served", "redis.call('HSET', shares, 'served:' .. flow, start + steps)", ""),
        ("no room for the urgent", "facts[7] == '0' and start < earliest", "false"),
        ("room of who ran", "facts[7] == '0' and start < earliest", "start < earliest"),
        ("all room at once", "tonumber(redis.call('HGET', shares, again) or 0)", "0"),
        ("the old fence", "local attempt = facts[7] + 1", "local attempt = facts[7] + 0"),
        ("no lease", "redis.call('ZADD', lease, now + tonumber(ARGV[4]), id)", ""),
        ("still queued", "add(load, {'queued:' .. facts[3], -1})", ""),
        ("no news", "(facts[8] or 0) + 1", "facts[8]"),
        ("debts that stay", "redis.call('DEL', shares)", ""),
        ("any size", "asked[5] .. 'x' .. asked[6] ~= ARGV[6]", "false"),
        ("drops the head of the queue", "if asked[5]",
         "redis.call('ZREM', queue, id) if asked[5]"),
    ],
    "list_jobs": [
        ("of any app", "(app == '' or held[1] == app)", "true"),
        ("of any status", "(status == '' or held[2] == status)", "true"),
        ("ghosts", "if held[1] and", "if"),
        ("without end", "#found < limit and", ""),
        ("the oldest first", "'REV', 'WITHSCORES'", "'WITHSCORES'"),
        ("the same page again", "if ARGV[5] ~= '' then", "if false then"),
        ("the last one twice", "rank + 1", "rank"),
        ("from the start when forgotten", "redis.call('ZCOUNT', index, ARGV[6], '+inf')", "0"),
        ("always more", "if first + looked < redis.call('ZCARD', index) then",
         "if #entries > 0 then"),
        ("everywhere in the queue", "redis.call('ZRANK', ARGV[2] .. held[1], id)", "0"),
    ],
    "view_outlooks": [
        ("the dead live", "cjson.decode(text)['until'] > now", "true"),
        ("counts no queue", "redis.call('ZCARD', ARGV[1] .. app) +", ""),
        ("silent of the broken", "if broken or #live > 0 then", "if #live > 0 then"),
        ("of another", "{number, live,", "{1, live,"),
    ],
    "beat": [
        ("no fence", "and held[2] == ARGV[i + 1]", ""),
        ("for what does not run", "held[1] == 'running' and", ""),
        ("no lease", "redis.call('ZADD', lease, 'XX', now + tonumber(ARGV[2]), ARGV[i])", ""),
        ("deaf to a cancel", "held[3] and 'cancel' or", ""),
        ("deaf to viewers", "watched and 'watched' or", ""),
        ("viewers for ever", "and tonumber(held[6]) > now", ""),
        ("news of nothing", "held[4] ~= ARGV[i + 3] or held[5] ~= ARGV[i + 2]", "true"),
        ("no news of steps", "if held[4] ~= ARGV[i + 3] or held[5] ~= ARGV[i + 2] then",
         "if false then"),
        ("blind to failed starts", "other['state'] == 'loading'", "false"),
    ],
    "finish": [
        ("no fence", "held[1] ~= 'running' or held[2] ~= fence", "false"),
        ("of what does not run", "held[1] ~= 'running' or ", ""),
        ("only once", "held[4] == fence", "false"),
        ("past a cancel", "held[3] and 'cancelled' or ARGV[3]", "ARGV[3]"),
        ("keeps the lease", "redis.call('ZREM', lease, id)", ""),
        ("bills nothing", "more, used)", "more, {})"),
        ("keeps no bill", "cjson.encode(used)", "'{}'"),
        ("bills a loser", "  return 'lost'", "  bill(app:sub(8), '', 'succeeded', "
         "cjson.decode(ARGV[10]), server_ms())\n  return 'lost'"),
        ("bills a repeat", "if held[4] == fence then",
         "if held[4] == fence then bill(app:sub(8), '', held[1], {}, server_ms())"),
        ("no images", "used.images = (used.images or 0) + 1", ""),
        ("no bytes", "used.result_bytes = (used.result_bytes or 0) + bytes", ""),
        ("keeps a loser's images", "drop_images()\n  return 'lost'", "return 'lost'"),
        ("keeps what is cancelled", "drop_images()\n  return 'cancelled'", "return 'cancelled'"),
        ("without its images", "redis.call('EXISTS', KEYS[i]) == 0", "false"),
        ("learns from the cancelled", "if status == 'succeeded' and ARGV[12]", "if ARGV[12]"),
        ("learns for good", "* fading", "* 1"),
        ("learns one line only", "ipairs({'pace_step', 'pace_picture', 'pace_file'})",
         "ipairs({'pace_step'})"),
    ],
    "look": [
        ("an app for ever", "if not held.app or held.ended", "if not held.app"),
        ("no app", "return {seen, app_now(", "return {seen} or {seen, app_now("),
        ("before nothing", "app_now(held.app, ARGV[1],", "app_now(held.app, 'end',"),
        ("no bound", "tonumber(ARGV[2])", "1000"),
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
        ("unheard", "redis.call('HSETNX', job, 'cancel', 1)", "redis.call('HSETNX', job, 'no', 1)"),
        ("news of nothing", "redis.call('HSETNX', job, 'cancel', 1) == 1",
         "redis.call('HSET', job, 'cancel', 1) >= 0"),
        ("leaves the job in the queue", "redis.call('ZREM', queue, ARGV[1])", ""),
        ("of an end", "elseif status == 'queued' then", "else"),
        ("records without end", "redis.call('LLEN', unrun) > UNRUN_LIMIT", "false"),
        ("a ghost in lists", "redis.call('ZREM', MINE .. held[3], oldest)", ""),
        ("a ghost that is gone", "redis.call('ZREM', INDEX, oldest)", ""),
        ("charges", "redis.call('HINCRBY', shares, own, -steps)", ""),
        ("charges the less urgent", "shift_lower(shares, flow, priority, -math.huge, -steps)", ""),
    ],
    "take_turn": [
        ("for everybody", "taken and 1 or 0", "1"),
        ("once for all", ", 'PX', ARGV[1])", ")"),
    ],
    "watch": [
        ("of an end", "if status == 'queued' or status == 'running' then", "if true then"),
        ("of the running alone", "status == 'queued' or", ""),
    ],
    "preview": [
        ("no fence", "or held[2] ~= ARGV[2]", ""),
        ("of an end", "held[1] ~= 'running' or", ""),
        ("for ever", "redis.call('PEXPIRE', KEYS[2], ARGV[6])", ""),
    ],
    "drain": [
        ("breaks nothing", "if ARGV[6] == '1' then", "if false then"),
        ("by an old replica", "then return 0 end", "then end"),
        ("ends nobody", "end_job(ARGV[1] .. id, id, 'failed', now, ARGV[4], app, load, ARGV[5], "
         "failure(code, message), {})", ""),
    ],
    "create_key": [
        ("over another", "== ARGV[4] and 1 or 0", "and 1"),
        ("unlisted", "redis.call('ZADD', KEYS[2], now, ARGV[1])", ""),
    ],
    "rotate_key": [
        ("of a revoked key", "if held[2] then", "if false then"),
        ("of no key", "if not held[1] then", "if false then"),
        ("repeats itself", "held[1] ~= ARGV[1]", "true"),
        ("no overlap", "now + ARGV[2]", "now"),
        ("an overlap without end", "now + ARGV[2]", "now + 1e9"),
    ],
    "set_quotas": [
        ("of a revoked key", "if held[2] then", "if false then"),
        ("of no key", "if not held[1] then", "if false then"),
        ("in words only", "redis.call('HSET', KEYS[1], 'quotas', ARGV[1])", ""),
    ],
    "revoke_key": [
        ("in words only", "redis.call('HSETNX', KEYS[1], 'revoked', server_ms())", ""),
        ("again and again", "HSETNX", "HSET"),
        ("of no key", "if redis.call('EXISTS', KEYS[1]) == 0 then", "if false then"),
    ],
    "common": [
        ("back to the end of the queue", "score_of(held[1], held[4] or 0)", "1e9"),
        ("no priorities", "return start - priority / 100", "return start"),
        ("back though cancelled", "held[2] and 'cancelled' or ", ""),
        ("back to a broken app", "broken[2] and 'failed' or ", ""),
        ("an end that counts nothing",
         "count_job(load, facts[1], facts[2], -1, facts[6] == 'queued', images)", ""),
        ("an end that leaves images", "== 'queued', images)", "== 'queued', 0)"),
        ("an end that stays queued", "facts[6] == 'queued', images", "false, images"),
        ("an end that was never queued", "facts[6] == 'queued', images", "true, images"),
        ("counts that never come to nothing", "if #gone > 0 then", "if false then"),
        ("back, but not as queued", "add(load, {'queued:' .. held[3], 1})", ""),
        ("a preview that outlives its job",
         "redis.call('DEL', PREVIEW .. id)\n  announce(id, channel, 'ended')",
         "announce(id, channel, 'ended')"),
        ("a preview that outlives its attempt",
         "redis.call('DEL', PREVIEW .. id)\n  announce(id, channel)\n",
         "announce(id, channel)\n"),
        ("an end without news", "announce(id, channel, 'ended')", ""),
        ("an end of the same version", "(facts[8] or 0) + 1", "facts[8]"),
        ("back without news", "announce(id, channel)\n  tell_app(channel)", "tell_app(channel)"),
        ("back with the same version", "(held[5] or 0) + 1", "held[5]"),
        ("an end that bills nothing", "bill(facts[1], facts[2], status, used, now)", ""),
        ("no bill of an app", "{client .. '|' .. app .. '|', client .. '||'}", "{client .. '||'}"),
        ("no total of a client", "{client .. '|' .. app .. '|', client .. '||'}",
         "{client .. '|' .. app .. '|'}"),
        ("on the wrong day", "math.floor(now / 86400000)", "math.floor(now / 86400000 + 1)"),
        ("no count of ends", "charge(ended, 1)", ""),
        ("an end that never expires", "redis.call('EXPIRE', job, facts[5] or ttl_s)", ""),
        ("a line kept like any job", "facts[5] or ttl_s", "ttl_s"),
        ("an end without its line", "if facts[4] then end_line(", "if false then end_line("),
        ("a line that ends twice", "redis.call('HDEL', batch .. ':live', id) == 0", "false"),
        ("a batch that never ends", "if ended < tonumber(counts[1]) then return end",
         "do return end"),
        ("a batch that never expires", "redis.call('EXPIRE', name, ttl_s)", ""),
        ("room made from the young", "now - keep_ms,", "'+inf',"),
        ("room never made", "if bytes > budget then", "if false then"),
        ("a batch's end that no webhook hears of", "if counts[6] then", "if false then"),
        ("a cancel told as a completion", "counts[7] and 'cancelled' or", ""),
        ("a bound of webhooks for all together", "'ZCARD', hooks_of(client)", "'ZCARD', HOOKS"),
        ("an end that no webhook hears of", "if facts[3] then tell", "if false then tell"),
        ("all that waits", "'ZRANGE', queue, 0, told - 1", "'ZRANGE', queue, 0, -1"),
        ("no bound of what is told", "math.min(position or 0, limit)", "position or 0"),
        ("the first has all before it", "told > 0 and", "true and"),
        ("nobody runs", "'ZRANGE', lease, 0, limit - 1", "'ZRANGE', lease, 0, 0, 'REV'"),
        ("silent for ever", "now - last}", "now}"),
        ("nothing expires", "redis.call('ZSCORE', INDEX, id) and 'expired' or", ""),
        ("no place", "redis.call('ZRANK', QUEUE .. held.app, id)", "false"),
    ],
    "take_hooks": [
        ("for ever",
         "redis.call('ZADD', hooks_of(client), math.floor(now) + tonumber(ARGV[2]), event)",
         "redis.call('ZREM', hooks_of(client), event)"),
        ("again and again", "math.floor(now) + tonumber(ARGV[2])", "now"),
        ("no turns", "math.max(first, now)", "first"),
    ],
    "begin_hook": [
        ("of what is delivered",
         "if not client or not redis.call('ZSCORE', hooks_of(client), event) then return false end",
         "if not client then return false end"),
        ("two at once", "tonumber(held[1] or 0) > now or", ""),
        ("before its time", " or tonumber(held[2]) > now", ""),
        ("of who rests", "if rests > now then", "if false then"),
        ("whose client rests", "redis.call('GET', ARGV[3] .. 'of:' .. client) or 0", "0"),
        ("for ever", "look_at_hook(client, event, busy)",
         "redis.call('ZREM', hooks_of(client), event)"),
    ],
    "settle_hook": [
        ("no fence", "held[1] ~= ARGV[2] or", ""),
        ("delivers for ever", "redis.call('ZREM', hooks, event)\n  redis.call('ZREM', dead, event)",
         "redis.call('ZREM', dead, event)"),
        ("remembers no rest", "redis.call('HSET', rest, 'until', now + span)", ""),
        ("rests for ever", "redis.call('DEL', rest)", ""),
        ("forgets the dead", "redis.call('ZADD', dead, now, event)", ""),
        ("forgets the next try", "look_at_hook(client, event, due)",
         "redis.call('ZREM', hooks, event)"),
        ("no bound for a client", "ZRANGE', dead_of, 0, -1 - ARGV[9]", "ZRANGE', dead_of, 1, 0"),
        ("counts what was replayed", "redis.call('ZREM', dead_of, event)\n", ""),
        ("the client rests not", "if ARGV[13] ~= '0' then", "if false then"),
    ],
    "replay_hook": [
        ("keeps the dead", "redis.call('ZREM', dead, event)", ""),
        ("after its back-off", "'due', now, ", ""),
        ("without a new count", "'base', held[2]", "'base', 0"),
        ("of who rests", "redis.call('DEL', ARGV[2] .. receiver(client, held[1]), "
         "ARGV[2] .. 'of:' .. client)", ""),
    ],
}  # fmt: skip


def _suite(*modules: ModuleType) -> list[Callable[[World], None]]:
    return [
        function
        for module in modules
        for name, function in vars(module).items()
        if name.startswith("test_") and inspect.isfunction(function)
    ]


SUITE = _suite(test_job_store, test_api_keys, test_job_list, test_batch_store)
BATCH_SUITE = _suite(test_batch_store)
BATCH_SCRIPTS = ("create_batch", "close_lines", "fail_line", "pack_part")


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
    own = (Path(sdserve.__file__).parent / "lua" / f"{script}.lua").read_text()
    if script != "common":
        own = own.partition("\n")[2]  # behind the first line is what all scripts share
    # Not inside the suite, where any error counts as red.
    assert own.count(piece) == 1, "the script has changed: change the mutation"

    def broken_text(name: str) -> str:
        text = operations.script_text(name)
        is_broken = script in (name, "common")
        return text.replace(own, own.replace(piece, broken)) if is_broken else text

    monkeypatch.setattr("sdserve.store.script_text", broken_text)
    suite = BATCH_SUITE if script in BATCH_SCRIPTS else SUITE
    assert any(_fails(test, redis) for test in suite)


def _fails(test: Callable[[World], None], redis: Redis) -> bool:
    redis.flushdb()
    try:
        test(World(RedisJobStore(redis), redis))
    except (Exception, pytest.fail.Exception):  # noqa: BLE001 (however it goes red)
        return True
    return False
