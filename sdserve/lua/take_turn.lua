#!lua flags=allow-oom
-- Take the turn of a chore, if nobody has had it. A plain SET would be refused by a full store, and
-- with it the chores that make room. Answers whether it is the caller's, and the milliseconds until
-- the next one.
-- KEYS turn
-- ARGV interval_ms
local taken = redis.call('SET', KEYS[1], 1, 'NX', 'PX', ARGV[1])
return {taken and 1 or 0, redis.call('PTTL', KEYS[1])}
