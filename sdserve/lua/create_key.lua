#!lua
-- Store a new API key. Answers 1; 0 when its id is taken.
-- KEYS key keys
-- ARGV id name role digest quotas_json
-- The same digest again is the same call whose reply was lost.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return redis.call('HGET', KEYS[1], 'digest') == ARGV[4] and 1 or 0
end
local now = server_ms()
redis.call('HSET', KEYS[1], 'name', ARGV[2], 'role', ARGV[3], 'digest', ARGV[4], 'quotas',
  ARGV[5], 'created', now)
redis.call('ZADD', KEYS[2], now, ARGV[1])
return 1
