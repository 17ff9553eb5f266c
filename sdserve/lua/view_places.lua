#!lua flags=no-writes
-- Where jobs stand in the queue of an app, many in one call: for each its version and its place,
-- either of which may be nothing.
-- KEYS queue (job)*
-- ARGV (id)*
local places = {}
for i, id in ipairs(ARGV) do
  local version = redis.call('HGET', KEYS[i + 1], 'version')
  places[i] = {version and tonumber(version), redis.call('ZRANK', KEYS[1], id)}
end
return places
