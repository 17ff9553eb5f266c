#!lua flags=allow-oom
-- Accept no secret of an API key any more: a full store is no reason to let anybody in.
-- Answers: done, missing.
-- KEYS key
if redis.call('EXISTS', KEYS[1]) == 0 then return 'missing' end
redis.call('HSETNX', KEYS[1], 'revoked', server_ms())
return 'done'
