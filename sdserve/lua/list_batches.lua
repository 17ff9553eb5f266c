#!lua flags=no-writes
-- Ids of batches, the newest first: of one client or of all, after the batch `after`.
-- KEYS batches
-- ARGV client all(0/1) after('' for the newest) limit
local start = 0
if ARGV[3] ~= '' then
  local rank = redis.call('ZREVRANK', KEYS[1], ARGV[3])
  if not rank then return {} end
  start = rank + 1
end
local found = {}
for _, id in ipairs(redis.call('ZREVRANGE', KEYS[1], start, -1)) do
  if #found >= tonumber(ARGV[4]) then break end
  local client = redis.call('HGET', BATCH .. id, 'client')
  if client and (ARGV[2] == '1' or client == ARGV[1]) then found[#found + 1] = id end
end
return found
