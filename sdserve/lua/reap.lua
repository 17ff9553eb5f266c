#!lua flags=allow-oom
-- Take back every lease that has run out: to the queue, or to an end when the user cancelled, the
-- app takes no jobs any more, or the job has lost too many replicas. Idempotent; any process may
-- run it at any time.
-- KEYS queue lease wake app load
-- ARGV job_prefix limit job_ttl_s channel
local queue, lease, wake, app, load = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local now = server_ms()
local requeued, ended = 0, 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', lease, '-inf', now, 'LIMIT', 0, ARGV[2])) do
  local job = ARGV[1] .. id
  redis.call('ZREM', lease, id)
  local held = redis.call('HMGET', job, 'status', 'attempt', 'max_attempts', 'cancel')
  if held[1] == 'running' then
    if not held[4] and tonumber(held[2]) >= tonumber(held[3]) then
      local why = failure('worker_lost',
        'The replica that ran this job was lost ' .. held[2] .. ' times: the job itself '
          .. 'may be what kills it. Submit it again with fewer steps or a smaller size.')
      end_job(job, id, 'failed', now, ARGV[3], app, load, ARGV[4], why, {})
      ended = ended + 1
    elseif hand_back(job, id, queue, wake, now, ARGV[3], app, load, ARGV[4]) == 'queued' then
      requeued = requeued + 1
    else
      ended = ended + 1
    end
  end
end
return {requeued, ended}
