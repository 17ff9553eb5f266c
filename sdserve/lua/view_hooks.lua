#!lua flags=no-writes
-- Webhook events that wait, or that were given up: the soonest due or the oldest first.
-- KEYS hooks|dead
-- ARGV hook_prefix limit
local found = {}
local events = redis.call('ZRANGE', KEYS[1], 0, ARGV[2] - 1, 'WITHSCORES')
for i = 1, #events, 2 do
  local held = redis.call('HMGET', ARGV[1] .. events[i], 'url', 'created', 'tries', 'error')
  -- One that was given up is gone before its entry in the list is.
  if held[1] then
    found[#found + 1] = {events[i], events[i + 1], held[1], held[2], held[3], held[4]}
  end
end
return found
