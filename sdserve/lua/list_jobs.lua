#!lua flags=no-writes
-- A page of the jobs in an index, newest first: those of an app and a status, at most `limit`, among
-- the next `scan` entries. Answers them, and the last entry that was looked at if there are more.
-- KEYS index
-- ARGV job_prefix queue_prefix limit scan after_id('' for the newest) after_created app status
--      ('' for any)
local index, limit, scan = KEYS[1], tonumber(ARGV[3]), tonumber(ARGV[4])
local app, status = ARGV[7], ARGV[8]
local first = 0
if ARGV[5] ~= '' then
  local rank = redis.call('ZREVRANK', index, ARGV[5])
  -- Where it was, when it has been forgotten meanwhile.
  first = rank and rank + 1 or redis.call('ZCOUNT', index, ARGV[6], '+inf')
end
local entries = redis.call('ZRANGE', index, first, first + scan - 1, 'REV', 'WITHSCORES')
local found, looked = {}, 0
while #found < limit and looked * 2 < #entries do
  local id = entries[looked * 2 + 1]
  looked = looked + 1
  local held = redis.call('HMGET', ARGV[1] .. id, 'app', 'status')
  -- An index remembers jobs for longer than there is a record of them.
  if held[1] and (app == '' or held[1] == app) and (status == '' or held[2] == status) then
    local position = held[2] == 'queued' and redis.call('ZRANK', ARGV[2] .. held[1], id)
    found[#found + 1] = {redis.call('HGETALL', ARGV[1] .. id), position}
  end
end
local last = false
if first + looked < redis.call('ZCARD', index) then
  last = {entries[looked * 2 - 1], entries[looked * 2]}
end
return {found, last}
