#!lua flags=allow-oom
-- Take due webhook events, to ask for their delivery: each is due again after `patience_ms`, for the
-- one who is asked may be lost. Clients take turns, who had his last turn longest ago comes first.
-- Answers the events, of each client the longest due first.
-- KEYS hooks
-- ARGV limit patience_ms
local hooks, limit = KEYS[1], tonumber(ARGV[1])
-- To the microsecond: who has just had his turn comes after who is due since the same millisecond.
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local clients, due = redis.call('ZRANGEBYSCORE', hooks, '-inf', now, 'LIMIT', 0, limit), {}
for _, client in ipairs(clients) do
  due[client] =
    redis.call('ZRANGEBYSCORE', hooks_of(client), '-inf', now, 'LIMIT', 0, limit)
end
local events, turn, is_more = {}, 1, true
while is_more do
  is_more = false
  for _, client in ipairs(clients) do
    local event = due[client][turn]
    if event and #events < limit then
      redis.call('ZADD', hooks_of(client), math.floor(now) + tonumber(ARGV[2]), event)
      events[#events + 1] = event
      is_more = true
    end
  end
  turn = turn + 1
end
for _, client in ipairs(clients) do
  local first = redis.call('ZRANGE', hooks_of(client), 0, 0, 'WITHSCORES')[2]
  if first then
    redis.call('ZADD', hooks, math.max(first, now), client)
  else
    redis.call('ZREM', hooks, client)
  end
end
return events
