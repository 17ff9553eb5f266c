#!lua flags=allow-oom
-- Begin a try to deliver an event, for at most `busy_ms`. Answers false when there is nothing to do:
-- it is delivered or given up, another tries it, it waits for its next try, or its receiver rests.
-- KEYS hooks hook
-- ARGV event busy_ms rest_prefix
local hooks, hook = KEYS[1], KEYS[2]
local now = server_ms()
local held = redis.call('HMGET', hook, 'busy', 'due', 'url', 'subject', 'created', 'base')
if not redis.call('ZSCORE', hooks, ARGV[1]) then return false end
if tonumber(held[1] or 0) > now or tonumber(held[2]) > now then return false end
local rests = tonumber(redis.call('HGET', ARGV[3] .. receiver(held[3]), 'until') or 0)
if rests > now then
  redis.call('ZADD', hooks, rests, ARGV[1])
  return false
end
local tries = redis.call('HINCRBY', hook, 'tries', 1)
local busy = now + tonumber(ARGV[2])
redis.call('HSET', hook, 'busy', busy)
redis.call('ZADD', hooks, busy, ARGV[1])
return {held[3], held[4], held[5], tries, tries - held[6]}
