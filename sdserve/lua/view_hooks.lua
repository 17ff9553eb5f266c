#!lua flags=no-writes
-- Webhook events that wait, or that were given up: the soonest due or the oldest first.
-- KEYS hooks|dead
-- ARGV hook_prefix limit
local listed = {}
local function list(key)
  local some = redis.call('ZRANGE', key, 0, ARGV[2] - 1, 'WITHSCORES')
  for i = 1, #some, 2 do listed[#listed + 1] = {some[i], some[i + 1]} end
end
if KEYS[1] == HOOKS then
  for _, client in ipairs(redis.call('ZRANGE', HOOKS, 0, -1)) do list(hooks_of(client)) end
else
  list(KEYS[1])
end
table.sort(listed, function(one, other)
  local at, later = tonumber(one[2]), tonumber(other[2])
  if at ~= later then return at < later end
  return one[1] < other[1]
end)
local found = {}
for i = 1, math.min(#listed, ARGV[2]) do
  local event, at = listed[i][1], listed[i][2]
  local held = redis.call('HMGET', ARGV[1] .. event, 'url', 'created', 'tries', 'error')
  -- One that was given up is gone before its entry in the list is.
  if held[1] then found[#found + 1] = {event, at, held[1], held[2], held[3], held[4]} end
end
return found
