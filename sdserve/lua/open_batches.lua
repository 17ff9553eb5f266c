#!lua flags=no-writes
-- Ids of the batches that need feeding or packing, the oldest first.
-- KEYS open
return redis.call('ZRANGE', KEYS[1], 0, -1)
