#!lua flags=allow-oom
-- Replace the results of a settled part by the packed ones, in the order of parts. The last part of
-- all takes the batch off the feeder's hands. Answers 0 when the part is not the next, or its
-- results are not the ones that were packed. Needs less memory afterwards than before.
-- KEYS batch results packed open
-- ARGV id part number_of_results data
local batch = KEYS[1]
local facts = redis.call('HMGET', batch, 'packed', 'parts')
if not facts[2] then
  redis.call('ZREM', KEYS[4], ARGV[1])
  return 0
end
if (facts[1] or '0') ~= ARGV[2] or redis.call('HLEN', KEYS[2]) ~= tonumber(ARGV[3]) then
  return 0
end
if ARGV[3] ~= '0' then
  redis.call('SET', KEYS[3], ARGV[4])
  redis.call('DEL', KEYS[2])
end
local left = redis.call('PTTL', batch)
if left > 0 then redis.call('PEXPIRE', KEYS[3], left) end
if redis.call('HINCRBY', batch, 'packed', 1) == tonumber(facts[2])
    and redis.call('HEXISTS', batch, 'ended') == 1 then
  redis.call('ZREM', KEYS[4], ARGV[1])
end
return 1
