#!lua
-- Give an API key other quotas of its own; they hold from its next request on.
-- Answers: done, missing, revoked.
-- KEYS key
-- ARGV quotas_json
local held = redis.call('HMGET', KEYS[1], 'digest', 'revoked')
if not held[1] then return 'missing' end
if held[2] then return 'revoked' end
redis.call('HSET', KEYS[1], 'quotas', ARGV[1])
return 'done'
