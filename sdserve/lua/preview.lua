#!lua
-- Show a running job as it stands, if the claim is still the caller's. Answers 1 when shown.
-- Not allow-oom: a full store does without.
-- KEYS job preview
-- ARGV id fence step number image ttl_ms channel
local held = redis.call('HMGET', KEYS[1], 'status', 'attempt')
if held[1] ~= 'running' or held[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[2], 'step', ARGV[3], 'number', ARGV[4], 'image', ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[6])
redis.call('PUBLISH', ARGV[7], ARGV[1] .. ' preview')
return 1
