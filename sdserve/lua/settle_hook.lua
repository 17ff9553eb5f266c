#!lua flags=allow-oom
-- Note the outcome of a try. A late one, when another try has begun, counts only if it delivered.
-- Answers what became of the event: delivered, waiting, dead, or late (nothing changed).
-- KEYS hooks hook dead
-- ARGV event try outcome(delivered retry dead) delay_ms reason span_ms dead_ttl_ms dead_limit
--      rest_prefix rest_ms(0: the receiver was quick) rest_limit_ms hook_prefix
local hooks, hook, dead, event = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local now = server_ms()
local held = redis.call('HMGET', hook, 'tries', 'since', 'url')
if not held[3] then return 'late' end
local rest = ARGV[9] .. receiver(held[3])
if ARGV[10] == '0' then
  redis.call('DEL', rest)
else
  -- A receiver that hangs must not take all our time: it rests, twice as long each time.
  local failures = redis.call('HINCRBY', rest, 'failures', 1)
  local span = math.min(tonumber(ARGV[11]), tonumber(ARGV[10]) * 2 ^ math.min(failures - 1, 30))
  redis.call('HSET', rest, 'until', now + span)
  redis.call('PEXPIRE', rest, span + tonumber(ARGV[11]))
end
if ARGV[3] == 'delivered' then
  redis.call('ZREM', hooks, event)
  redis.call('ZREM', dead, event)
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
  redis.call('ZADD', hooks, due, event)
  return 'waiting'
end
redis.call('ZREM', hooks, event)
redis.call('ZADD', dead, now, event)
redis.call('PEXPIRE', hook, ARGV[7])
redis.call('ZREMRANGEBYSCORE', dead, '-inf', now - tonumber(ARGV[7]))
for _, old in ipairs(redis.call('ZRANGE', dead, 0, -1 - ARGV[8])) do
  redis.call('ZREM', dead, old)
  redis.call('DEL', ARGV[12] .. old)
end
return 'dead'
