#!lua flags=no-writes
-- An app at one moment: depth of its queue, leases, live replicas, notes.
-- KEYS queue lease replicas app
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local live = {}
for _, text in ipairs(redis.call('HVALS', KEYS[3])) do
  if cjson.decode(text)['until'] > now then live[#live + 1] = text end
end
return {now, redis.call('ZCARD', KEYS[1]), redis.call('ZCARD', KEYS[2]), live,
  redis.call('HMGET', KEYS[4], 'broken', 'seconds_per_job', 'load_seconds', 'wish_until', 'device')}
