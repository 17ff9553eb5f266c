#!lua
-- Accept a batch once: idempotency, room, and its stored parts become its own, in one step.
-- Answers created; duplicate or conflict with the id of the batch that has the key; full or
-- client_full with the room that is taken; webhooks_full with the events that wait; lost when a part
-- has vanished meanwhile.
-- Not allow-oom: a full store must refuse new work.
-- KEYS batch idempotency batches open (part)*
-- ARGV id client lines digest idempotency_ttl_s part_lines parts apps_of_parts_json room_bytes
--      room_limit client_limit webhook('' for none) apps_json webhook_limit (lines of app)*
local batch, idem, batches, open = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, client, digest, parts = ARGV[1], ARGV[2], ARGV[4], tonumber(ARGV[7])

-- What was stored for a batch that there will not be goes at once: it is another's room.
local function refuse(answer, of, number)
  for part = 1, parts do redis.call('UNLINK', KEYS[4 + part]) end
  return {answer, of, number}
end

if idem ~= '' then
  local known = redis.call('HMGET', idem, 'id', 'digest')
  if known[1] and known[1] ~= id then
    return refuse(known[2] == digest and 'duplicate' or 'conflict', known[1], 0)
  end
end
-- The same id again is the same call whose reply was lost.
if redis.call('EXISTS', batch) == 1 then return {'duplicate', id, 0} end

-- Room is counted in lines of `room_bytes`, and in whole parts: long lines take that of several.
local room = 0
for part = 1, parts do
  local bytes = redis.call('STRLEN', KEYS[4 + part])
  room = room + math.max(tonumber(ARGV[6]), math.ceil(bytes / ARGV[9]))
end
local all, unfinished, mine, own, others = 0, 0, 0, {}, {}
for _, other in ipairs(redis.call('ZRANGE', batches, 0, -1)) do
  local facts = redis.call('HMGET', BATCH .. other, 'room', 'ended', 'client', 'parts')
  if not facts[1] then
    redis.call('ZREM', batches, other)
  else
    all = all + facts[1]
    if facts[2] then
      local ended = facts[3] == client and own or others
      ended[#ended + 1] = {other, facts[1], facts[4]}
    else
      unfinished = unfinished + facts[1]
      if facts[3] == client then mine = mine + facts[1] end
    end
  end
end
local hooks = ARGV[12] ~= '' and too_many_hooks(client, ARGV[14])
if hooks then return refuse('webhooks_full', id, hooks) end
if client ~= '' and mine + room > tonumber(ARGV[11]) then
  return refuse('client_full', id, mine)
end
if unfinished + room > tonumber(ARGV[10]) then return refuse('full', id, unfinished) end
for part = 1, parts do
  if redis.call('EXISTS', KEYS[4 + part]) == 0 then return refuse('lost', id, 0) end
end
-- The uploader's own ended batches go first, so that nobody's uploads push out another's results
-- while he has some to give; then the oldest of all.
for _, ended in ipairs({own, others}) do
  for _, other in ipairs(ended) do
    if all + room <= tonumber(ARGV[10]) then break end
    for _, key in ipairs(keys_of_batch(BATCH .. other[1], other[3])) do
      redis.call('UNLINK', key)
    end
    redis.call('ZREM', batches, other[1])
    redis.call('ZREM', open, other[1])
    all = all - other[2]
  end
end

for part = 1, parts do redis.call('PERSIST', KEYS[4 + part]) end
local now = server_ms()
redis.call('HSET', batch, 'id', id, 'client', client, 'lines', ARGV[3], 'part_lines', ARGV[6],
  'parts', parts, 'apps_of_parts', ARGV[8], 'room', room, 'apps', ARGV[13], 'created', now)
for i, app in ipairs(cjson.decode(ARGV[13])) do
  redis.call('HSET', batch, 'lines:' .. app, ARGV[14 + i])
end
if ARGV[12] ~= '' then redis.call('HSET', batch, 'webhook', ARGV[12]) end
redis.call('ZADD', batches, now, id)
redis.call('ZADD', open, now, id)
if idem ~= '' then
  redis.call('HSET', idem, 'id', id, 'digest', digest)
  redis.call('EXPIRE', idem, ARGV[5])
end
return {'created', id, 0}
