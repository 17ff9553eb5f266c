#!lua flags=no-writes
-- An app at one moment: depth of its queue, leases, live replicas, notes; and the work before a
-- job, or before the end of the queue, if that is asked for. Of many jobs only the first `limit`
-- are told, so a look costs the same at any depth.
-- KEYS queue lease replicas app
-- ARGV job_prefix before('' for none, 'end', or a job's id) limit
local queue, lease, prefix, before, limit = KEYS[1], KEYS[2], ARGV[1], ARGV[2], tonumber(ARGV[3])
local now = server_ms()
local live = {}
for _, text in ipairs(redis.call('HVALS', KEYS[3])) do
  if cjson.decode(text)['until'] > now then live[#live + 1] = text end
end
local waiting = redis.call('ZCARD', queue)
local work = false
if before ~= '' then
  local position = before == 'end' and waiting or redis.call('ZRANK', queue, before)
  local queued, running = {}, {}
  local told = math.min(position or 0, limit)
  for _, id in ipairs(told > 0 and redis.call('ZRANGE', queue, 0, told - 1) or {}) do
    queued[#queued + 1] = redis.call('HGET', prefix .. id, 'work')
  end
  for _, id in ipairs(redis.call('ZRANGE', lease, 0, limit - 1)) do
    local held = redis.call('HMGET', prefix .. id, 'owner', 'work', 'step', 'started', 'told')
    local last = held[5] or held[4]
    running[#running + 1] = {id, held[1], held[2], held[3], last - held[4], now - last}
  end
  work = {position, queued, running}
end
return {now, waiting, redis.call('ZCARD', lease), live,
  redis.call('HMGET', KEYS[4], 'broken', 'wish_until', 'device', 'file_bytes', 'load', 'pace_step',
    'pace_picture', 'pace_file'), work}
