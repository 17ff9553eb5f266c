#!lua flags=no-writes
-- What many apps can do at one moment. Nothing is told of those that are cold and can take work.
-- KEYS none: whose they are is what is asked
-- ARGV queue_prefix lease_prefix replicas_prefix app_prefix app...
-- Answers: now, and of each that is told its number, live replicas, unfinished jobs, broken reason.
local now = server_ms()
local told = {}
for number = 1, #ARGV - 4 do
  local app, live = ARGV[number + 4], {}
  for _, text in ipairs(redis.call('HVALS', ARGV[3] .. app)) do
    if cjson.decode(text)['until'] > now then live[#live + 1] = text end
  end
  local broken = redis.call('HGET', ARGV[4] .. app, 'broken')
  if broken or #live > 0 then
    local work = redis.call('ZCARD', ARGV[1] .. app) + redis.call('ZCARD', ARGV[2] .. app)
    told[#told + 1] = {number, live, work, broken}
  end
end
return {now, told}
