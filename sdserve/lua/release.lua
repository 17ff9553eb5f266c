#!lua flags=allow-oom
-- Give a claimed job back at its old place (a replica that stops). Not counted as a loss: one more
-- attempt is allowed; the fence still moves on, so the old claim stays dead.
-- KEYS job queue lease wake
-- ARGV id fence channel
local job, queue, lease, wake = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local held = redis.call('HMGET', job, 'status', 'attempt', 'score')
if held[1] ~= 'running' or held[2] ~= ARGV[2] then return 0 end
redis.call('ZREM', lease, ARGV[1])
redis.call('HSET', job, 'status', 'queued', 'step', 0)
redis.call('HINCRBY', job, 'max_attempts', 1)
redis.call('HDEL', job, 'owner', 'phase')
redis.call('ZADD', queue, held[3], ARGV[1])
redis.call('RPUSH', wake, ARGV[1])
redis.call('EXPIRE', wake, 60)
redis.call('PUBLISH', ARGV[3], ARGV[1])
return 1
