#!lua
-- Lease up to n queued jobs to a replica. The attempt number is the fence of this claim.
-- Not allow-oom: with a full store the picture could not be kept, so no GPU time is spent.
-- KEYS queue lease
-- ARGV job_prefix replica n lease_ms
local queue, lease = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local claimed = {}
while #claimed < tonumber(ARGV[3]) do
  local id = redis.call('ZRANGE', queue, 0, 0)[1]
  if not id then break end
  redis.call('ZREM', queue, id)
  local job = ARGV[1] .. id
  if redis.call('HGET', job, 'status') == 'queued' then
    local attempt = redis.call('HINCRBY', job, 'attempt', 1)
    redis.call('HSET', job, 'status', 'running', 'owner', ARGV[2], 'started', now, 'step', 0,
      'phase', 'starting')
    redis.call('ZADD', lease, now + tonumber(ARGV[4]), id)
    local facts = redis.call('HMGET', job, 'request', 'created')
    claimed[#claimed + 1] = {id, attempt, facts[1], now - facts[2]}
  end
end
return claimed
