#!lua flags=no-writes
-- A part of a batch: its lines, their results (packed or not), and how the live jobs stand.
-- KEYS lines packed results live
-- ARGV job_prefix
local live = {}
for _, id in ipairs(redis.call('HKEYS', KEYS[4])) do
  local job = redis.call('HMGET', ARGV[1] .. id, 'line', 'status')
  live[#live + 1] = job[1]
  live[#live + 1] = job[2]
end
return {redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2]), redis.call('HGETALL', KEYS[3]),
  live}
