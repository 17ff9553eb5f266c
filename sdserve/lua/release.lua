#!lua flags=allow-oom
-- Give a claimed job back at its old place (a replica that stops). Not counted as a loss: one more
-- attempt is allowed; the fence still moves on, so the old claim stays dead.
-- KEYS job queue lease wake app load
-- ARGV id fence channel job_ttl_s
local job, queue, lease, wake, app, load = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local held = redis.call('HMGET', job, 'status', 'attempt')
if held[1] ~= 'running' or held[2] ~= ARGV[2] then return 0 end
redis.call('ZREM', lease, ARGV[1])
redis.call('HINCRBY', job, 'max_attempts', 1)
hand_back(job, ARGV[1], queue, wake, server_ms(), ARGV[4], app, load, ARGV[3])
return 1
