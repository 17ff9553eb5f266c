#!lua flags=allow-oom
-- End a running job, if the claim is still the caller's. Answers: finished, cancelled (the user
-- asked first: the result is dropped), lost (a late writer: nothing changes), unstored (an image is
-- not there: nothing changes). The images come in the same write, just before.
-- KEYS job lease app load results (image)*
-- ARGV id fence status meta_json job_ttl_s channel result_budget result_ttl_ms result_keep_ms
--      spent_json fading (size seconds){0 or 3}

-- One more observation of a line of the app's pace: what Line.seen of pace.py does.
local function learn(app, field, size, seconds, fading)
  local u, z = 1 / size, seconds / size
  local before, sums = {}, {1, u, z, u * u, u * z}
  for number in string.gmatch(redis.call('HGET', app, field) or '', '%S+') do
    before[#before + 1] = tonumber(number)
  end
  if #before == #sums then  -- else nothing is known, or another version wrote it
    for i, number in ipairs(before) do sums[i] = number * fading + sums[i] end
  end
  redis.call('HSET', app, field, string.format('%.17g %.17g %.17g %.17g %.17g', unpack(sums)))
end

local job, lease, app, load, results = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local id, fence = ARGV[1], ARGV[2]
local held = redis.call('HMGET', job, 'status', 'attempt', 'cancel', 'ended_by')
local function drop_images()
  for i = 6, #KEYS do redis.call('DEL', KEYS[i]) end
end
-- A repeat of the same call whose reply was lost.
if held[4] == fence then
  if held[1] ~= 'cancelled' then return 'finished' end
  drop_images()
  return 'cancelled'
end
if held[1] ~= 'running' or held[2] ~= fence then
  drop_images()
  return 'lost'
end
local status = held[3] and 'cancelled' or ARGV[3]
for i = 6, #KEYS do
  if status ~= 'cancelled' and redis.call('EXISTS', KEYS[i]) == 0 then return 'unstored' end
end
local now = server_ms()
local used, more = cjson.decode(ARGV[10]), {'ended_by', fence}
if status == 'cancelled' then
  drop_images()
else
  more[3], more[4] = 'meta', ARGV[4]
  for i = 6, #KEYS do
    local bytes = redis.call('STRLEN', KEYS[i])
    redis.call('PEXPIRE', KEYS[i], ARGV[8])
    redis.call('ZADD', results, now, bytes .. ' ' .. KEYS[i])
    redis.call('HINCRBY', load, 'bytes', bytes)
    used.images = (used.images or 0) + 1
    used.result_bytes = (used.result_bytes or 0) + bytes
  end
  if #KEYS > 5 then
    make_room(results, load, now, tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[7]))
  end
end
more[#more + 1] = 'usage'
more[#more + 1] = cjson.encode(used)
redis.call('ZREM', lease, id)
if status == 'succeeded' and ARGV[12] then
  for i, line in ipairs({'pace_step', 'pace_picture', 'pace_file'}) do
    learn(app, line, tonumber(ARGV[10 + 2 * i]), tonumber(ARGV[11 + 2 * i]), tonumber(ARGV[11]))
  end
end
end_job(job, id, status, now, ARGV[5], app, load, ARGV[6], more, used)
return status == 'cancelled' and 'cancelled' or 'finished'
