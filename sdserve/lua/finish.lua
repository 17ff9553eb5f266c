#!lua flags=allow-oom
-- End a running job, if the claim is still the caller's. Answers: finished, cancelled (the user
-- asked first: the result is dropped), lost (a late writer: nothing changes).
-- KEYS job lease app (result)*
-- ARGV id fence status meta_json job_ttl_s result_ttl_s channel seconds
local job, lease, app = KEYS[1], KEYS[2], KEYS[3]
local held = redis.call('HMGET', job, 'status', 'attempt', 'cancel', 'ended_by')
-- A repeat of the same call whose reply was lost.
if held[4] == ARGV[2] then return held[1] == 'cancelled' and 'cancelled' or 'finished' end
if held[1] ~= 'running' or held[2] ~= ARGV[2] then
  for i = 4, #KEYS do redis.call('DEL', KEYS[i]) end
  return 'lost'
end
local status = held[3] and 'cancelled' or ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', job, 'status', status, 'ended', now, 'ended_by', ARGV[2])
if status == 'cancelled' then
  for i = 4, #KEYS do redis.call('DEL', KEYS[i]) end
else
  redis.call('HSET', job, 'meta', ARGV[4])
  for i = 4, #KEYS do redis.call('EXPIRE', KEYS[i], ARGV[6]) end
end
redis.call('HDEL', job, 'owner', 'phase')
redis.call('EXPIRE', job, ARGV[5])
redis.call('ZREM', lease, ARGV[1])
redis.call('HINCRBY', app, status, 1)
if status == 'succeeded' then
  local before = tonumber(redis.call('HGET', app, 'seconds_per_job') or ARGV[8])
  redis.call('HSET', app, 'seconds_per_job', before * 0.7 + tonumber(ARGV[8]) * 0.3)
end
redis.call('PUBLISH', ARGV[7], ARGV[1])
return status == 'cancelled' and 'cancelled' or 'finished'
