#!lua
-- Store a part of an upload. It vanishes by itself unless create_batch makes it part of a batch.
-- Not allow-oom: a full store must refuse new work.
-- KEYS part
-- ARGV data ttl_s
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
