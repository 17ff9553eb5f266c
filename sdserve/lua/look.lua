#!lua flags=no-writes
-- A job at one moment, and until it is final also its app with the work before it.
-- KEYS job
-- ARGV id limit
local seen, held = job_now(KEYS[1], ARGV[1])
if not held.app or held.ended then return {seen} end
return {seen, app_now(held.app, ARGV[1], tonumber(ARGV[2]))}
