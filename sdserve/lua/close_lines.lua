#!lua flags=allow-oom
-- End the lines of a batch that have no job yet, of one app or of all: no more are handed over.
-- Answers missing, ended (the whole batch had), or closed. Idempotent.
-- KEYS batch
-- ARGV app('' for all) record status job_ttl_s cancel(0/1)
local batch, status = KEYS[1], ARGV[3]
local facts = redis.call('HMGET', batch, 'apps', 'ended')
if not facts[1] then return 'missing' end
if facts[2] then return 'ended' end
local now = server_ms()
if ARGV[5] == '1' then redis.call('HSETNX', batch, 'cancel', now) end
local count = 0
for _, app in ipairs(cjson.decode(facts[1])) do
  if (ARGV[1] == '' or ARGV[1] == app)
      and redis.call('HSETNX', batch, 'rest:' .. app, ARGV[2]) == 1 then
    local lines = redis.call('HMGET', batch, 'lines:' .. app, 'fed:' .. app)
    count = count + lines[1] - (lines[2] or 0)
  end
end
if count > 0 then end_lines(batch, status, count, now, ARGV[4]) end
return 'closed'
