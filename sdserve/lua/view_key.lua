#!lua flags=no-writes
-- An API key at one moment.
-- KEYS key
return {server_ms(), redis.call('HGETALL', KEYS[1])}
