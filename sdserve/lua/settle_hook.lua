#!lua flags=allow-oom
-- Note the outcome of a try. A late one, when another try has begun, counts only if it delivered.
-- Answers what became of the event: delivered, waiting, dead, or late (nothing changed).
-- KEYS hook dead
-- ARGV event try outcome(delivered retry dead) delay_ms reason span_ms dead_ttl_ms dead_limit
--      dead_limit_of_client rest_prefix rest_ms(0: the receiver does not hang) rest_limit_ms
--      client_rest_ms hook_prefix
local hook, dead, event = KEYS[1], KEYS[2], ARGV[1]
local now = server_ms()
local held = redis.call('HMGET', hook, 'tries', 'since', 'url', 'client')
local client = held[4]
if not client then return 'late' end
local hooks, dead_of = hooks_of(client), dead .. ':' .. client
-- Who has taken long leaves as long to others.
if ARGV[13] ~= '0' then
  redis.call('SET', ARGV[10] .. 'of:' .. client, now + ARGV[13], 'PX', ARGV[13])
end
local rest = ARGV[10] .. receiver(client, held[3])
if ARGV[11] == '0' then
  redis.call('DEL', rest)
else
  -- A receiver that hangs must not take all our time: it rests, twice as long each time.
  local failures = redis.call('HINCRBY', rest, 'failures', 1)
  local span = math.min(tonumber(ARGV[12]), tonumber(ARGV[11]) * 2 ^ math.min(failures - 1, 30))
  redis.call('HSET', rest, 'until', now + span)
  redis.call('PEXPIRE', rest, span + tonumber(ARGV[12]))
end
if ARGV[3] == 'delivered' then
  redis.call('ZREM', hooks, event)
  redis.call('ZREM', dead, event)
  redis.call('ZREM', dead_of, event)
  redis.call('DEL', hook)
  return 'delivered'
end
if held[1] ~= ARGV[2] or not redis.call('ZSCORE', hooks, event) then return 'late' end
redis.call('HDEL', hook, 'busy')
redis.call('HSET', hook, 'error', ARGV[5])
local last = held[2] + ARGV[6]
if ARGV[3] == 'retry' and now < last then
  -- The last try is when the time is over, not a back-off before.
  local due = math.min(now + tonumber(ARGV[4]), last)
  redis.call('HSET', hook, 'due', due)
  look_at_hook(client, event, due)
  return 'waiting'
end
redis.call('ZREM', hooks, event)
redis.call('ZADD', dead, now, event)
redis.call('ZADD', dead_of, now, event)
redis.call('PEXPIRE', hook, ARGV[7])
redis.call('PEXPIRE', dead_of, ARGV[7])
for _, list in ipairs({dead, dead_of}) do
  redis.call('ZREMRANGEBYSCORE', list, '-inf', now - tonumber(ARGV[7]))
end
local function forget(old)
  local whose = redis.call('HGET', ARGV[14] .. old, 'client')
  redis.call('ZREM', dead, old)
  if whose then redis.call('ZREM', dead .. ':' .. whose, old) end
  redis.call('DEL', ARGV[14] .. old)
end
for _, old in ipairs(redis.call('ZRANGE', dead_of, 0, -1 - ARGV[9])) do forget(old) end
for _, old in ipairs(redis.call('ZRANGE', dead, 0, -1 - ARGV[8])) do forget(old) end
return 'dead'
