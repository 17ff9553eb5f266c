#!lua flags=allow-oom
-- A replica's heartbeat: its presence, and the leases and progress of its jobs.
-- Answers one word for each job: ok, watched (ok, and somebody wants to see previews), cancel (the
-- user asked), lost (the claim is no longer ours).
-- A presence that ran out while it was loading counts as a failed start of the app.
-- KEYS replicas lease app
-- ARGV job_prefix lease_ms replica presence_json presence_ttl_ms channel (id fence step phase)*
local replicas, lease, channel = KEYS[1], KEYS[2], ARGV[6]
local now = server_ms()
local presence = cjson.decode(ARGV[4])
presence['until'] = now + tonumber(ARGV[5])
presence['told'] = now
local before = redis.call('HGET', replicas, ARGV[3])
before = before and cjson.decode(before) or {}
redis.call('HSET', replicas, ARGV[3], cjson.encode(presence))
local news = before['until'] == nil or before['until'] <= now
  or before.state ~= presence.state or before.phase ~= presence.phase
redis.call('EXPIRE', replicas, 86400)
local fields = redis.call('HGETALL', replicas)
for i = 1, #fields, 2 do
  local other = cjson.decode(fields[i + 1])
  if other['until'] <= now and fields[i] ~= ARGV[3] then
    redis.call('HDEL', replicas, fields[i])
    news = true
    if other['state'] == 'loading' then redis.call('HINCRBY', KEYS[3], 'load_failures', 1) end
  end
end
if news then tell_app(channel) end
local words = {}
for i = 7, #ARGV, 4 do
  local job = ARGV[1] .. ARGV[i]
  local held = redis.call('HMGET', job, 'status', 'attempt', 'cancel', 'phase', 'step',
    'watched')
  if held[1] == 'running' and held[2] == ARGV[i + 1] then
    redis.call('ZADD', lease, 'XX', now + tonumber(ARGV[2]), ARGV[i])
    redis.call('HSET', job, 'step', ARGV[i + 2], 'phase', ARGV[i + 3], 'told', now)
    if held[4] ~= ARGV[i + 3] or held[5] ~= ARGV[i + 2] then tell(job, ARGV[i], channel) end
    local watched = held[6] and tonumber(held[6]) > now
    words[#words + 1] = held[3] and 'cancel' or watched and 'watched' or 'ok'
  else
    words[#words + 1] = 'lost'
  end
end
return words
