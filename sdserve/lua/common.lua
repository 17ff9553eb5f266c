-- Put before every script, after its first line (operations/operation.py): the server's clock, what
-- those who watch are told, what a look at a job and at an app finds, the counts of unfinished jobs,
-- the outbox of webhooks, the one way a job ends, its line in a batch, and the room for results. The
-- names of the keys that it makes itself (HOOK, PREVIEW, ...) come from keys.py.

local function server_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- What a viewer sees of a job has changed, and its `version` with it: that counts these changes and
-- never goes back.
local function announce(id, channel, word)
  redis.call('PUBLISH', channel, word and id .. ' ' .. word or id)
end

local function tell(job, id, channel)
  redis.call('HINCRBY', job, 'version', 1)
  announce(id, channel)
end

-- What a viewer sees of an app has changed, and so of all its queued jobs: order, replicas, phase.
local function tell_app(channel)
  redis.call('PUBLISH', channel, '')
end

-- A hash as HGETALL gives it, by its fields.
local function fields_of(flat)
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end

-- A job at one moment: {'found', its fields, its place in the queue}. One whose record is gone but
-- whose id is still in the index has expired. Answers also the fields by their names.
local function job_now(job, id)
  local flat = redis.call('HGETALL', job)
  local held = fields_of(flat)
  if #flat == 0 then return {redis.call('ZSCORE', INDEX, id) and 'expired' or 'missing'}, held end
  local place = held.status == 'queued' and redis.call('ZRANK', QUEUE .. held.app, id)
  return {'found', flat, place}, held
end

-- An app at one moment: depth of its queue, leases, live replicas, notes; and the work before a job
-- (`before`: its id), or before the end of the queue ('end'), if that is asked for (else ''). Of many
-- jobs only the first `limit` are told, so a look costs the same at any depth.
local function app_now(app, before, limit)
  local queue, lease, now, live = QUEUE .. app, LEASE .. app, server_ms(), {}
  for _, text in ipairs(redis.call('HVALS', REPLICAS .. app)) do
    if cjson.decode(text)['until'] > now then live[#live + 1] = text end
  end
  local waiting = redis.call('ZCARD', queue)
  local work = false
  if before ~= '' then
    local position = before == 'end' and waiting or redis.call('ZRANK', queue, before)
    local queued, running = {}, {}
    local told = math.min(position or 0, limit)
    for _, id in ipairs(told > 0 and redis.call('ZRANGE', queue, 0, told - 1) or {}) do
      queued[#queued + 1] = redis.call('HGET', JOB .. id, 'work')
    end
    for _, id in ipairs(redis.call('ZRANGE', lease, 0, limit - 1)) do
      local held = redis.call('HMGET', JOB .. id, 'owner', 'work', 'step', 'started', 'told')
      local last = held[5] or held[4]
      running[#running + 1] = {id, held[1], held[2], held[3], last - held[4], now - last}
    end
    work = {position, queued, running}
  end
  return {now, waiting, redis.call('ZCARD', lease), live,
    redis.call('HMGET', APP .. app, 'broken', 'wish_until', 'device', 'file_bytes', 'load',
      'pace_step', 'pace_picture', 'pace_file'), work}
end

-- Add to counters of a hash: `changes` has fields and amounts in turn. A counter that comes to
-- nothing goes. One write of all is one command to replay after a crash. Answers whether the hash has
-- counters that it did not have.
local function add(hash, changes)
  local fields, sums, gone = {}, {}, {}
  for i = 1, #changes, 2 do fields[#fields + 1] = changes[i] end
  for i, held in ipairs(redis.call('HMGET', hash, unpack(fields))) do
    local sum = (held or 0) + changes[2 * i]
    if sum > 0 then
      sums[#sums + 1] = fields[i]
      sums[#sums + 1] = sum
    elseif held then
      gone[#gone + 1] = fields[i]
    end
  end
  if #gone > 0 then redis.call('HDEL', hash, unpack(gone)) end
  return #sums > 0 and redis.call('HSET', hash, unpack(sums)) > 0
end

-- `load` counts the jobs that have not ended: all, of an app, of a client; those of a client that are
-- queued, and its images.
local function count_job(load, app, client, change, queued, images)
  local changes = {'all', change, 'app:' .. app, change, 'client:' .. client, change,
    'images:' .. client, change * images}
  if queued then
    changes[#changes + 1] = 'queued:' .. client
    changes[#changes + 1] = change
  end
  add(load, changes)
end

-- A flow is what a client waits for in an app; the lines of its batches are another. `shares` keeps of
-- it where the last of its claimed jobs ended (`served`), and for each priority where the next job
-- would start. Answers the latest of these, of priorities from `priority`: nothing starts before; and
-- `served`.
local function end_of_flow(shares, flow, priority)
  local fields, last = {'served:' .. flow}, 0
  for level = priority, HIGHEST do fields[#fields + 1] = level .. ':' .. flow end
  local held = redis.call('HMGET', shares, unpack(fields))
  for _, ends in ipairs(held) do last = math.max(last, tonumber(ends or 0)) end
  return last, tonumber(held[1] or 0)
end

-- So many steps more (or fewer) before the flow's jobs of lower priorities, where there are some that
-- start after `start`.
local function shift_lower(shares, flow, priority, start, steps)
  local fields = {}
  for level = LOWEST, priority - 1 do fields[#fields + 1] = level .. ':' .. flow end
  if #fields == 0 then return end
  for i, ends in ipairs(redis.call('HMGET', shares, unpack(fields))) do
    if ends and tonumber(ends) > start then
      redis.call('HINCRBY', shares, fields[i], steps)
    end
  end
end

-- A job's place in its app's queue. Of jobs that start together the more urgent is first.
local function score_of(start, priority)
  return start - priority / 100
end

-- What a job's place is made of: where it starts, its priority, its flow, its steps. `facts` begin
-- with its start, priority, client, batch, work.
local function place_of(facts)
  local flow = facts[3] .. (facts[4] and ':batch' or '')
  return tonumber(facts[1]), tonumber(facts[2] or 0), flow, tonumber(facts[5]:match('^%d+'))
end

-- The undelivered webhook events of a client: HOOKS has the clients, so that each has its turn.
local function hooks_of(client)
  return HOOKS .. ':of:' .. client
end

-- How many webhook events of a client are not delivered yet, if these are as many as may be.
local function too_many_hooks(client, limit)
  local waiting = redis.call('ZCARD', hooks_of(client))
  return waiting >= tonumber(limit) and waiting
end

-- Let the sweep look at an event of a client at this time.
local function look_at_hook(client, event, at)
  redis.call('ZADD', hooks_of(client), at, event)
  redis.call('ZADD', HOOKS, 'LT', at, client)
end

-- The receiver of a client's webhook (scheme, host and port) as part of a key: hashed, for it is a
-- client's text.
local function receiver(client, url)
  return redis.sha1hex(client .. ' ' .. string.match(url, '^%w+://[^/?#]+'))
end

-- Put an event into the outbox: `kind` (job, batch), its id, and how that ended. What the event tells
-- is the hash `subject` as it is now, for that may expire before a receiver is back.
local function tell_webhook(kind, id, status, url, now, subject)
  local event = kind .. '_' .. id .. '_' .. status
  local told = fields_of(redis.call('HGETALL', subject))
  redis.call('HSET', HOOK .. event, 'url', url, 'subject', cjson.encode(told), 'created', now,
    'since', now, 'due', now, 'tries', 0, 'base', 0, 'client', told.client)
  look_at_hook(told.client, event, now)
end

-- The keys of a batch beside its hash: what was uploaded, results, results of settled parts.
local function keys_of_batch(batch, parts)
  local names = {batch, batch .. ':live'}
  for part = 0, parts - 1 do
    for _, kind in ipairs({':in:', ':out:', ':res:'}) do
      names[#names + 1] = batch .. kind .. part
    end
  end
  return names
end

-- So many more lines of a batch have ended; the last ones end the batch.
local function end_lines(batch, status, count, now, ttl_s)
  redis.call('HINCRBY', batch, status, count)
  local counts = redis.call('HMGET', batch, 'lines', 'parts', 'succeeded', 'failed', 'cancelled',
    'webhook', 'cancel', 'id')
  local ended = (counts[3] or 0) + (counts[4] or 0) + (counts[5] or 0)
  if ended < tonumber(counts[1]) then return end
  redis.call('HSET', batch, 'ended', now)
  if counts[6] then
    local how = counts[7] and 'cancelled' or 'completed'
    tell_webhook('batch', counts[8], how, counts[6], now, batch)
  end
  for _, name in ipairs(keys_of_batch(batch, counts[2])) do redis.call('EXPIRE', name, ttl_s) end
end

-- What became of a line, beside its part.
local function keep_outcome(batch, line, record)
  local part = math.floor((line - 1) / redis.call('HGET', batch, 'part_lines'))
  redis.call('HSET', batch .. ':out:' .. part, line, record)
end

-- The job of a line has ended. Only once: then it is no longer among the batch's live ones.
local function end_line(id, job, status, now, ttl_s)
  local facts = redis.call('HMGET', job, 'batch', 'line', 'meta')
  local batch = BATCH .. facts[1]
  if redis.call('HDEL', batch .. ':live', id) == 0 then return end
  keep_outcome(batch, tonumber(facts[2]), status .. ' ' .. (facts[3] or '{}'))
  end_lines(batch, status, 1, now, ttl_s)
end

-- Add what a job used (metric -> amount) to its day, for its client and app and for its client in
-- all.
local function bill(app, client, status, used, now)
  local ended, changes = 'jobs_' .. status, {}
  local function charge(metric, amount)
    for _, whose in ipairs({client .. '|' .. app .. '|', client .. '||'}) do
      changes[#changes + 1] = whose .. metric
      changes[#changes + 1] = amount
    end
  end
  charge(ended, 1)
  for metric, amount in pairs(used) do
    if amount > 0 then charge(metric, amount) end
  end
  local day = USAGE .. math.floor(now / 86400000)
  if add(day, changes) then redis.call('EXPIRE', day, USAGE_TTL) end
end

-- `more`: what else its hash keeps, names and values in turn, written in the same command. `used`:
-- what the attempt that ends it spent.
local function end_job(job, id, status, now, ttl_s, app, load, channel, more, used)
  local facts = redis.call('HMGET', job, 'app', 'client', 'webhook', 'batch', 'ttl', 'status',
    'work', 'version')
  redis.call('HSET', job, 'status', status, 'ended', now, 'version', (facts[8] or 0) + 1,
    unpack(more))
  redis.call('HDEL', job, 'owner', 'phase')
  redis.call('HINCRBY', app, status, 1)
  local images = string.match(facts[7], '%d+$')
  count_job(load, facts[1], facts[2], -1, facts[6] == 'queued', images)
  bill(facts[1], facts[2], status, used, now)
  redis.call('DEL', PREVIEW .. id)
  announce(id, channel, 'ended')
  if facts[3] then tell_webhook('job', id, status, facts[3], now, job) end
  if facts[4] then end_line(id, job, status, now, ttl_s) end
  redis.call('EXPIRE', job, facts[5] or ttl_s)
end

-- What the hash of a job keeps of why it failed.
local function failure(code, message)
  return {'meta', cjson.encode({error = {code = code, message = message}})}
end

-- Back to the job's own place; or to its end, when the user has cancelled it or the app takes no
-- jobs any more. Answers the status it has then.
local function hand_back(job, id, queue, wake, now, ttl_s, app, load, channel)
  local held = redis.call('HMGET', job, 'start', 'cancel', 'client', 'priority', 'version')
  local broken = redis.call('HMGET', app, 'broken_code', 'broken')
  local status = held[2] and 'cancelled' or broken[2] and 'failed' or 'queued'
  if status ~= 'queued' then
    local why = status == 'failed' and failure(broken[1] or 'app_broken', broken[2]) or {}
    end_job(job, id, status, now, ttl_s, app, load, channel, why, {})
    return status
  end
  redis.call('HSET', job, 'status', 'queued', 'step', 0, 'version', (held[5] or 0) + 1)
  redis.call('HDEL', job, 'owner', 'phase')
  redis.call('ZADD', queue, score_of(held[1], held[4] or 0), id)
  add(load, {'queued:' .. held[3], 1})
  redis.call('RPUSH', wake, id)
  redis.call('EXPIRE', wake, 60)
  redis.call('DEL', PREVIEW .. id)
  announce(id, channel)
  tell_app(channel)
  return status
end

-- `results` has an entry "bytes key" for every image that is kept, by the time it was stored.
-- Over the budget the oldest go first, none of them younger than `keep_ms`. Answers the bytes left.
local function make_room(results, load, now, ttl_ms, keep_ms, budget)
  local function forget(entry)
    local bytes, key = string.match(entry, '^(%d+) (.+)$')
    redis.call('DEL', key)
    redis.call('ZREM', results, entry)
    return redis.call('HINCRBY', load, 'bytes', -bytes)
  end
  for _, entry in ipairs(redis.call('ZRANGEBYSCORE', results, '-inf', now - ttl_ms,
      'LIMIT', 0, 1000)) do
    forget(entry)
  end
  local bytes = tonumber(redis.call('HGET', load, 'bytes') or 0)
  if bytes > budget then
    for _, entry in ipairs(redis.call('ZRANGEBYSCORE', results, '-inf', now - keep_ms,
        'LIMIT', 0, 1000)) do
      if bytes <= budget then break end
      bytes = forget(entry)
    end
  end
  return bytes
end
