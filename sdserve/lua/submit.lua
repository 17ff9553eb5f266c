#!lua
-- Accept a job once: idempotency, bounds, the job itself, its place in the queue and the decision
-- "run now" are one step, so no check can race with another client.
-- Not allow-oom: a full store must refuse new work.
-- KEYS job queue lease replicas idempotency index app_index wake app sequence
-- ARGV id app model request digest idempotency_ttl_s priority max_attempts queue_limit
local job, queue, lease, replicas, idem = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local index, app_index, wake, app, sequence = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local id, digest = ARGV[1], ARGV[5]

if idem ~= '' then
  local known = redis.call('HMGET', idem, 'id', 'digest')
  if known[1] then
    return {known[2] == digest and 'duplicate' or 'conflict', known[1], 0}
  end
end
-- The same id again is the same call whose reply was lost.
if redis.call('EXISTS', job) == 1 then return {'duplicate', id, 0} end

local broken = redis.call('HGET', app, 'broken')
if broken then return {'broken', broken, 0} end
local waiting = redis.call('ZCARD', queue)
if waiting >= tonumber(ARGV[9]) then return {'full', id, waiting} end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local slots = 0
for _, text in ipairs(redis.call('HVALS', replicas)) do
  local replica = cjson.decode(text)
  if replica['until'] > now and replica.state ~= 'loading' then slots = slots + replica.slots end
end
local busy = waiting + redis.call('ZCARD', lease)

-- Higher priority first, then first come first served. The score is kept: a requeued job goes
-- back to its own place.
local score = -tonumber(ARGV[7]) * 1e12 + redis.call('INCR', sequence)
redis.call('HSET', job, 'id', id, 'app', ARGV[2], 'model', ARGV[3], 'status', 'queued',
  'request', ARGV[4], 'created', now, 'attempt', 0, 'max_attempts', ARGV[8], 'score', score)
redis.call('ZADD', queue, score, id)
redis.call('ZADD', index, now, id)
redis.call('ZADD', app_index, now, id)
if idem ~= '' then
  redis.call('HSET', idem, 'id', id, 'digest', digest)
  redis.call('EXPIRE', idem, ARGV[6])
end
-- Only a hint that wakes a blocked replica: losing it costs one second, never a job.
if redis.call('LLEN', wake) < 64 then
  redis.call('RPUSH', wake, id)
  redis.call('EXPIRE', wake, 60)
end
return {busy < slots and 'run_now' or 'queued', id, waiting}
