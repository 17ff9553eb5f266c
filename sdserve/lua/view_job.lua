#!lua flags=no-writes
-- A job at one moment (job_now in common.lua).
-- KEYS job
-- ARGV id
return (job_now(KEYS[1], ARGV[1]))
