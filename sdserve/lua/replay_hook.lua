#!lua
-- Deliver an event now, whether it was given up or waits; it has a new day for it. Answers whether
-- there is such an event.
-- KEYS hooks hook dead
-- ARGV event rest_prefix
local hooks, hook, dead, event = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local held = redis.call('HMGET', hook, 'url', 'tries')
redis.call('ZREM', dead, event)
if not held[1] then return 0 end
local now = server_ms()
redis.call('PERSIST', hook)
redis.call('HSET', hook, 'since', now, 'due', now, 'base', held[2])
redis.call('DEL', ARGV[2] .. receiver(held[1]))
redis.call('ZADD', hooks, now, event)
return 1
