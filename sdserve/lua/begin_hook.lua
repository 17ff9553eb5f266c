#!lua flags=allow-oom
-- Begin a try to deliver an event, for at most `busy_ms`. Answers false when there is nothing to do:
-- it is delivered or given up, another tries it, it waits for its next try, or its receiver or its
-- client rests.
-- KEYS hook
-- ARGV event busy_ms rest_prefix
local hook, event = KEYS[1], ARGV[1]
local now = server_ms()
local held = redis.call('HMGET', hook, 'busy', 'due', 'url', 'subject', 'created', 'base', 'client')
local client = held[7]
if not client or not redis.call('ZSCORE', hooks_of(client), event) then return false end
if tonumber(held[1] or 0) > now or tonumber(held[2]) > now then return false end
local rests = math.max(
  tonumber(redis.call('HGET', ARGV[3] .. receiver(client, held[3]), 'until') or 0),
  tonumber(redis.call('GET', ARGV[3] .. 'of:' .. client) or 0))
if rests > now then
  look_at_hook(client, event, rests)
  return false
end
local tries = redis.call('HINCRBY', hook, 'tries', 1)
local busy = now + tonumber(ARGV[2])
redis.call('HSET', hook, 'busy', busy)
look_at_hook(client, event, busy)
return {held[3], held[4], held[5], tries, tries - held[6]}
