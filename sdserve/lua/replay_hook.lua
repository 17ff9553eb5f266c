#!lua
-- Deliver an event now, whether it was given up or waits; it has a new day for it. Answers whether
-- there is such an event.
-- KEYS hook dead
-- ARGV event rest_prefix
local hook, dead, event = KEYS[1], KEYS[2], ARGV[1]
local held = redis.call('HMGET', hook, 'url', 'tries', 'client')
redis.call('ZREM', dead, event)
if not held[1] then return 0 end
local client, now = held[3], server_ms()
redis.call('ZREM', dead .. ':' .. client, event)
redis.call('PERSIST', hook)
redis.call('HSET', hook, 'since', now, 'due', now, 'base', held[2])
redis.call('DEL', ARGV[2] .. receiver(client, held[1]), ARGV[2] .. 'of:' .. client)
look_at_hook(client, event, now)
return 1
