#!lua
-- Somebody watches this job and wants previews, for so long. Its replica hears of it with its next
-- heartbeat; a wish that is not repeated runs out by itself.
-- KEYS job
-- ARGV watch_ms
local status = redis.call('HGET', KEYS[1], 'status')
if status == 'queued' or status == 'running' then
  redis.call('HSET', KEYS[1], 'watched', server_ms() + ARGV[1])
end
return status
