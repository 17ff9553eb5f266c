#!lua flags=no-writes
-- A batch at one moment, and its jobs that have not ended.
-- KEYS batch live
return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2])}
