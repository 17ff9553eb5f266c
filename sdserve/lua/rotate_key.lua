#!lua
-- Give an API key a new secret; the old one is accepted for `overlap_ms` more.
-- Answers: done, missing, revoked.
-- KEYS key
-- ARGV digest overlap_ms
local held = redis.call('HMGET', KEYS[1], 'digest', 'revoked')
if not held[1] then return 'missing' end
if held[2] then return 'revoked' end
-- The same digest again is the same call whose reply was lost: the old secret stays the old one.
if held[1] ~= ARGV[1] then
  local now = server_ms()
  redis.call('HSET', KEYS[1], 'digest', ARGV[1], 'rotated', now, 'old_digest', held[1],
    'old_until', now + ARGV[2])
end
return 'done'
