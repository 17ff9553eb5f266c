#!lua flags=allow-oom
-- Take due webhook events, to ask for their delivery: each is due again after `patience_ms`, for the
-- one who is asked may be lost. Answers the events, the longest due first.
-- KEYS hooks
-- ARGV limit patience_ms
local now = server_ms()
local events = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, event in ipairs(events) do
  redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), event)
end
return events
