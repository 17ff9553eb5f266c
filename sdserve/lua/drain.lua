#!lua flags=allow-oom
-- End queued jobs of an app with one reason: its checkpoint cannot be loaded (then the app is
-- marked broken in the same step, so no job can slip in between), or the app was deleted.
-- With `spec`, only if the app is still deployed as that: an old replica must not break a new app.
-- Answers how many ended; call again while it is `limit`.
-- KEYS queue app apps load shares
-- ARGV job_prefix code message job_ttl_s channel broken(0/1) name spec('' for any) limit
local queue, app, load, shares = KEYS[1], KEYS[2], KEYS[4], KEYS[5]
local code, message = ARGV[2], ARGV[3]
if ARGV[8] ~= '' and redis.call('HGET', KEYS[3], ARGV[7]) ~= ARGV[8] then return 0 end
local now = server_ms()
if ARGV[6] == '1' then redis.call('HSET', app, 'broken', message, 'broken_code', code) end
local ids = redis.call('ZRANGE', queue, 0, ARGV[9] - 1)
for _, id in ipairs(ids) do
  redis.call('ZREM', queue, id)
  end_job(ARGV[1] .. id, id, 'failed', now, ARGV[4], app, load, ARGV[5], failure(code, message), {})
end
redis.call('DEL', shares)
if ARGV[6] == '1' or #ids > 0 then tell_app(ARGV[5]) end
return #ids
