#!lua flags=allow-oom
-- Cancel a job: at once when it is queued, within one step when it runs (the heartbeat carries the
-- wish to the replica). Answers the status found: queued, running, a final one, or missing.
-- KEYS job queue app load shares
-- ARGV id job_ttl_s channel
local job, queue, app, load, shares = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local held = redis.call('HMGET', job, 'start', 'priority', 'client', 'batch', 'work', 'status',
  'attempt')
local status = held[6]
if not status then return 'missing' end
if status == 'running' then
  -- Told once: a repeat changes nothing that anybody sees.
  if redis.call('HSETNX', job, 'cancel', 1) == 1 then tell(job, ARGV[1], ARGV[3]) end
elseif status == 'queued' then
  redis.call('ZREM', queue, ARGV[1])
  -- What was not served is not charged.
  local _, priority, flow, steps = place_of(held)
  local own = priority .. ':' .. flow
  if redis.call('HEXISTS', shares, own) == 1 then redis.call('HINCRBY', shares, own, -steps) end
  shift_lower(shares, flow, priority, -math.huge, -steps)
  end_job(job, ARGV[1], 'cancelled', server_ms(), ARGV[2], app, load, ARGV[3],
    {'cancel', 1}, {})
  -- It cost nothing, so a client could make such records without end: they go soon, and each has but
  -- so many. (Of a batch there are no more than its lines.)
  if held[7] == '0' and not held[4] then
    local unrun = UNRUN .. held[3]
    redis.call('EXPIRE', job, UNRUN_TTL, 'LT')
    redis.call('RPUSH', unrun, ARGV[1])
    redis.call('EXPIRE', unrun, INDEX_TTL)
    if redis.call('LLEN', unrun) > UNRUN_LIMIT then
      local oldest = redis.call('LPOP', unrun)
      redis.call('DEL', JOB .. oldest)
      redis.call('ZREM', INDEX, oldest)
      redis.call('ZREM', MINE .. held[3], oldest)
    end
  end
  tell_app(ARGV[3])
end
return status
