#!lua flags=allow-oom
-- End the next line of an app in a batch without a job, for it can never be one. It has its turn once,
-- as in submit.lua. Answers 1; 0 when it has had it, or no more lines of the app are handed over.
-- KEYS batch
-- ARGV app line previous_line record job_ttl_s
local batch, app, line = KEYS[1], ARGV[1], ARGV[2]
local place = redis.call('HMGET', batch, 'lines', 'last:' .. app, 'rest:' .. app)
if not place[1] or place[3] or (place[2] or '0') ~= ARGV[3] then return 0 end
redis.call('HSET', batch, 'last:' .. app, line)
redis.call('HINCRBY', batch, 'fed:' .. app, 1)
keep_outcome(batch, tonumber(line), ARGV[4])
end_lines(batch, 'failed', 1, server_ms(), ARGV[5])
return 1
