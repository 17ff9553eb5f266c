#!lua flags=allow-oom
-- End every queued job of an app with one reason: its checkpoint cannot be loaded (then the app is
-- marked broken in the same step, so no job can slip in between), or the app was deleted.
-- With `spec`, only if the app is still deployed as that: an old replica must not break a new app.
-- KEYS queue app apps
-- ARGV job_prefix code message job_ttl_s channel broken(0/1) name spec('' for any)
local queue, app = KEYS[1], KEYS[2]
if ARGV[8] ~= '' and redis.call('HGET', KEYS[3], ARGV[7]) ~= ARGV[8] then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[6] == '1' then redis.call('HSET', app, 'broken', ARGV[3]) end
local ids = redis.call('ZRANGE', queue, 0, -1)
for _, id in ipairs(ids) do
  local job = ARGV[1] .. id
  redis.call('HSET', job, 'status', 'failed', 'ended', now,
    'meta', cjson.encode({error = {code = ARGV[2], message = ARGV[3]}}))
  redis.call('EXPIRE', job, ARGV[4])
  redis.call('PUBLISH', ARGV[5], id)
end
redis.call('DEL', queue)
if #ids > 0 then redis.call('HINCRBY', app, 'failed', #ids) end
return #ids
