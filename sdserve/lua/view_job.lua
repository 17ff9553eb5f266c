#!lua flags=no-writes
-- A job at one moment, and its app's view while it waits. A job whose record is gone but whose id
-- is still in the index has expired.
-- KEYS job index
-- ARGV id queue_prefix
local fields = redis.call('HGETALL', KEYS[1])
if #fields == 0 then
  return {redis.call('ZSCORE', KEYS[2], ARGV[1]) and 'expired' or 'missing'}
end
local job = {}
for i = 1, #fields, 2 do job[fields[i]] = fields[i + 1] end
local position = false
if job.status == 'queued' then position = redis.call('ZRANK', ARGV[2] .. job.app, ARGV[1]) end
return {'found', fields, position}
