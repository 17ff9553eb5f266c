#!lua flags=no-writes
-- An app at one moment: depth of its queue, leases, live replicas, notes.
-- KEYS queue lease replicas app
local now = server_ms()
local live = {}
for _, text in ipairs(redis.call('HVALS', KEYS[3])) do
  if cjson.decode(text)['until'] > now then live[#live + 1] = text end
end
return {now, redis.call('ZCARD', KEYS[1]), redis.call('ZCARD', KEYS[2]), live,
  redis.call('HMGET', KEYS[4], 'broken', 'seconds_per_job', 'load_seconds', 'wish_until', 'device')}
