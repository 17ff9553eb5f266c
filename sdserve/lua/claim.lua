#!lua
-- Lease up to n queued jobs to a replica. The attempt number is the fence of this claim.
-- With a size only such jobs: a head of the queue that has another one ends the claim, so the order
-- of the queue is kept, and it is first when the replica is free.
-- Not allow-oom: with a full store the picture could not be kept, so no GPU time is spent.
-- KEYS queue lease clock shares load
-- ARGV job_prefix replica n lease_ms channel size('WIDTHxHEIGHT', '' for any)
local queue, lease, clock, shares, load = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local now = server_ms()
local claimed = {}
while #claimed < tonumber(ARGV[3]) do
  local next = redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')
  local id = next[1]
  if not id then break end
  local job = ARGV[1] .. id
  local facts = redis.call('HMGET', job, 'request', 'created', 'client', 'status')
  local is_queued = facts[4] == 'queued'
  if is_queued and ARGV[6] ~= '' then
    local asked = cjson.decode(facts[1])
    if asked.width .. 'x' .. asked.height ~= ARGV[6] then break end
  end
  redis.call('ZREM', queue, id)
  if is_queued then
    local priority = 0 - math.floor(next[2] / 1e12)
    local start = next[2] + priority * 1e12
    if start > tonumber(redis.call('HGET', clock, priority) or 0) then
      redis.call('HSET', clock, priority, start)
    end
    local attempt = redis.call('HINCRBY', job, 'attempt', 1)
    redis.call('HSET', job, 'status', 'running', 'owner', ARGV[2], 'started', now, 'told', now,
      'step', 0, 'phase', 'starting')
    redis.call('ZADD', lease, now + tonumber(ARGV[4]), id)
    tell(job, id, ARGV[5])
    count(load, 'queued:' .. facts[3], -1)
    claimed[#claimed + 1] = {id, attempt, facts[1], now - facts[2]}
  end
end
if #claimed > 0 then tell_app(ARGV[5]) end
-- With nobody waiting nobody has had more than a share.
if redis.call('ZCARD', queue) == 0 then redis.call('DEL', shares) end
return claimed
