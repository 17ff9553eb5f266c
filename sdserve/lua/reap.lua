#!lua flags=allow-oom
-- Take back every lease that has run out: to the queue, or to an end when the user cancelled or
-- the job has lost too many replicas. Idempotent; any process may run it at any time.
-- KEYS queue lease wake app
-- ARGV job_prefix limit job_ttl_s channel
local queue, lease, wake, app = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local requeued, ended = 0, 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', lease, '-inf', now, 'LIMIT', 0, ARGV[2])) do
  local job = ARGV[1] .. id
  redis.call('ZREM', lease, id)
  local held = redis.call('HMGET', job, 'status', 'attempt', 'max_attempts', 'score', 'cancel')
  if held[1] == 'running' then
    local status
    if held[5] then
      status = 'cancelled'
    elseif tonumber(held[2]) >= tonumber(held[3]) then
      status = 'failed'
      redis.call('HSET', job, 'meta', cjson.encode({error = {code = 'worker_lost',
        message = 'The replica that ran this job was lost ' .. held[2] .. ' times: the job itself '
          .. 'may be what kills it. Submit it again with fewer steps or a smaller size.'}}))
    end
    redis.call('HDEL', job, 'owner', 'phase')
    if status then
      redis.call('HSET', job, 'status', status, 'ended', now)
      redis.call('EXPIRE', job, ARGV[3])
      redis.call('HINCRBY', app, status, 1)
      ended = ended + 1
    else
      redis.call('HSET', job, 'status', 'queued', 'step', 0)
      redis.call('ZADD', queue, held[4], id)
      redis.call('RPUSH', wake, id)
      redis.call('EXPIRE', wake, 60)
      requeued = requeued + 1
    end
    redis.call('PUBLISH', ARGV[4], id)
  end
end
return {requeued, ended}
