#!lua flags=no-writes
-- A job at one moment, and until it is final also its app with the work before it.
-- KEYS job
-- ARGV id limit
local seen = job_now(KEYS[1], ARGV[1])
local facts = redis.call('HMGET', KEYS[1], 'app', 'ended')
if not facts[1] or facts[2] then return {seen} end
return {seen, app_now(facts[1], ARGV[1], tonumber(ARGV[2]))}
