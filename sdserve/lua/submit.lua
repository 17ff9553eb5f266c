#!lua
-- Accept a job once: idempotency, bounds, the job itself, its place in the queue and the decision
-- "run now" are one step, so no check can race with another client.
-- Not allow-oom: a full store must refuse new work.
-- KEYS job queue lease replicas idempotency index wake app load results clock shares mine
-- ARGV id app model request digest idempotency_ttl_s priority max_attempts client cost
--      queue_limit job_limit client_limit result_budget result_ttl_ms result_keep_ms channel
--      webhook('' for none) batch('' for none) line previous_line job_ttl_s images
--      client_queue_limit day_images day_gpu_s work webhook_limit
-- A limit of a client is '' where it has none.
-- Answers: word, id, number; of a client with a name also what it has of its quotas.
local job, queue, lease, replicas, idem = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local index, wake, app, load, results = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local clock, shares, mine = KEYS[11], KEYS[12], KEYS[13]
local id, digest, priority, client = ARGV[1], ARGV[5], tonumber(ARGV[7]), ARGV[9]
local images = tonumber(ARGV[23])

if idem ~= '' then
  local known = redis.call('GET', idem)
  if known then
    local of, as = known:match('^(%S+) (.*)$')
    return {as == digest and 'duplicate' or 'conflict', of, 0}
  end
end
-- The line of a batch has its turn once: when the one before it was the app's last.
local batch = ARGV[19] ~= '' and BATCH .. ARGV[19]
if batch then
  local place = redis.call('HMGET', batch, 'lines', 'last:' .. ARGV[2], 'rest:' .. ARGV[2])
  if not place[1] or place[3] then return {'closed', id, 0} end
  if (place[2] or '0') ~= ARGV[21] then return {'duplicate', id, 0} end
end
-- The same id again is the same call whose reply was lost.
if redis.call('EXISTS', job) == 1 then return {'duplicate', id, 0} end

local broken = redis.call('HGET', app, 'broken')
if broken then return {'broken', broken, 0} end
local waiting = redis.call('ZCARD', queue)
if waiting >= tonumber(ARGV[11]) then return {'full', id, waiting} end
local counts = redis.call('HMGET', load, 'all', 'bytes', 'client:' .. client, 'queued:' .. client,
  'images:' .. client)
local all = tonumber(counts[1] or 0)
if all >= tonumber(ARGV[12]) then return {'server_full', id, all} end
local now = server_ms()

local has, day, left
if client ~= '' then
  local function over(bound, amount) return bound ~= '' and amount > tonumber(bound) end
  left = 86400000 - now % 86400000
  day = (now + left) / 86400000 - 1
  local spent = redis.call('HMGET', USAGE .. day, client .. '||images', client .. '||gpu_ms')
  local jobs, queued = tonumber(counts[3] or 0), tonumber(counts[4] or 0)
  local drawn, gpu_ms = tonumber(spent[1] or 0) + tonumber(counts[5] or 0), tonumber(spent[2] or 0)
  has = {jobs, queued, drawn, gpu_ms, left}
  if over(ARGV[13], jobs + 1) then return {'client_full', id, jobs, has} end
  if over(ARGV[24], queued + 1) then return {'client_queue_full', id, queued, has} end
  if over(ARGV[25], drawn + images) then return {'images_spent', id, drawn, has} end
  -- Spent when it is reached: what a job will take is known only when it has ended.
  if ARGV[26] ~= '' and gpu_ms >= ARGV[26] * 1000 then return {'gpu_spent', id, gpu_ms, has} end
end
local hooks = ARGV[18] ~= '' and too_many_hooks(client, ARGV[28])
if hooks then return {'webhooks_full', id, hooks, has} end
local budget, ttl, keep = tonumber(ARGV[14]), tonumber(ARGV[15]), tonumber(ARGV[16])
if tonumber(counts[2] or 0) > budget
    and make_room(results, load, now, ttl, keep, budget) > budget then
  local oldest = redis.call('ZRANGE', results, 0, 0, 'WITHSCORES')
  return {'storage_full', id, math.max(0, oldest[2] + keep - now)}
end
if has then has[1], has[2], has[3] = has[1] + 1, has[2] + 1, has[3] + images end

local slots = 0
for _, text in ipairs(redis.call('HVALS', replicas)) do
  local replica = cjson.decode(text)
  if replica['until'] > now and replica.state ~= 'loading' then slots = slots + replica.slots end
end
local busy = waiting + redis.call('ZCARD', lease)

-- Start-time fair queueing (Goyal, Vin, Cheng 1996): a job starts, on a clock that counts served
-- steps, where its client's last one ended or now, whichever is later. So whoever asks for the first
-- time is next, however many jobs of others wait, at any priority: that orders the jobs of one
-- client. An urgent one starts where his last one of its priority ends; those of lower priorities
-- make room when their turn comes (claim.lua). The place is kept: a job that is handed back goes
-- back to it. A client's batches have a share beside his own: they do not delay what he waits for.
local flow = client .. (batch and ':batch' or '')
local start = math.max(tonumber(redis.call('HGET', clock, 'steps') or 0),
  end_of_flow(shares, flow, priority))
redis.call('HSET', shares, priority .. ':' .. flow, start + ARGV[10])
shift_lower(shares, flow, priority, start, ARGV[10])
local facts = {'id', id, 'app', ARGV[2], 'model', ARGV[3], 'status', 'queued', 'client', client,
  'request', ARGV[4], 'created', now, 'attempt', 0, 'max_attempts', ARGV[8], 'start', start,
  'work', ARGV[27], 'version', 1}
local function note(...)
  for _, each in ipairs({...}) do facts[#facts + 1] = each end
end
if priority ~= 0 then note('priority', priority) end
if ARGV[18] ~= '' then note('webhook', ARGV[18]) end
if batch then
  note('batch', ARGV[19], 'line', ARGV[20], 'ttl', ARGV[22])
  redis.call('HSET', batch, 'last:' .. ARGV[2], ARGV[20])
  redis.call('HINCRBY', batch, 'fed:' .. ARGV[2], 1)
  redis.call('HSET', batch .. ':live', id, ARGV[2])
end
redis.call('HSET', job, unpack(facts))
redis.call('ZADD', queue, score_of(start, priority), id)
redis.call('ZADD', index, now, id)
redis.call('ZADD', mine, now, id)
count_job(load, ARGV[2], client, 1, true, images)
if idem ~= '' then redis.call('SET', idem, id .. ' ' .. digest, 'EX', ARGV[6]) end
-- Only a hint that wakes a blocked replica: losing it costs one second, never a job.
if redis.call('LLEN', wake) < 64 then
  redis.call('RPUSH', wake, id)
  redis.call('EXPIRE', wake, 60)
end
local ahead = redis.call('ZRANK', queue, id)
announce(id, ARGV[17])
if ahead < waiting then tell_app(ARGV[17]) end
return {busy < slots and 'run_now' or 'queued', id, ahead, has}
