#!lua flags=allow-oom
-- Cancel a job: at once when it is queued, within one step when it runs (the heartbeat carries the
-- wish to the replica). Answers the status found: queued, running, a final one, or missing.
-- KEYS job queue app
-- ARGV id job_ttl_s channel
local job, queue, app = KEYS[1], KEYS[2], KEYS[3]
local status = redis.call('HGET', job, 'status')
if not status then return 'missing' end
if status == 'running' then
  redis.call('HSET', job, 'cancel', 1)
elseif status == 'queued' then
  local time = redis.call('TIME')
  redis.call('ZREM', queue, ARGV[1])
  redis.call('HSET', job, 'status', 'cancelled', 'cancel', 1,
    'ended', time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('EXPIRE', job, ARGV[2])
  redis.call('HINCRBY', app, 'cancelled', 1)
  redis.call('PUBLISH', ARGV[3], ARGV[1])
end
return status
