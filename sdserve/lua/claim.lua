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
  local id = redis.call('ZRANGE', queue, 0, 0)[1]
  if not id then break end
  local job = ARGV[1] .. id
  local facts = redis.call('HMGET', job, 'start', 'priority', 'client', 'batch', 'work', 'status',
    'attempt', 'version', 'request', 'created')
  if facts[6] ~= 'queued' then
    redis.call('ZREM', queue, id)
  else
    local start, priority, flow, steps = place_of(facts)
    local earliest, served = end_of_flow(shares, flow, priority + 1)
    if facts[7] == '0' and start < earliest then
      -- His more urgent jobs came later and go before it: it makes room now, once for each time that
      -- some came, behind those of its priority that did before.
      local again = 'again:' .. priority .. ':' .. flow
      start = math.max(earliest, tonumber(redis.call('HGET', shares, again) or 0))
      redis.call('HSET', shares, again, start + steps)
      redis.call('HSET', job, 'start', start)
      redis.call('ZADD', queue, score_of(start, priority), id)
    else
      if ARGV[6] ~= '' then
        local asked = cjson.decode(facts[9])  -- GenerationParams.to_json
        if asked[5] .. 'x' .. asked[6] ~= ARGV[6] then break end
      end
      redis.call('ZREM', queue, id)
      if start > tonumber(redis.call('HGET', clock, 'steps') or 0) then
        redis.call('HSET', clock, 'steps', start)
      end
      if start + steps > served then
        redis.call('HSET', shares, 'served:' .. flow, start + steps)
      end
      local attempt = facts[7] + 1
      redis.call('HSET', job, 'status', 'running', 'owner', ARGV[2], 'started', now, 'told', now,
        'step', 0, 'phase', 'starting', 'attempt', attempt, 'version', (facts[8] or 0) + 1)
      redis.call('ZADD', lease, now + tonumber(ARGV[4]), id)
      announce(id, ARGV[5])
      add(load, {'queued:' .. facts[3], -1})
      claimed[#claimed + 1] = {id, attempt, facts[9], now - facts[10]}
    end
  end
end
if #claimed > 0 then tell_app(ARGV[5]) end
-- With nobody waiting nobody has had more than a share.
if redis.call('ZCARD', queue) == 0 then redis.call('DEL', shares) end
return claimed
