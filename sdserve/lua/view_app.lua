#!lua flags=no-writes
-- An app at one moment, and the work before one of its jobs (app_now in common.lua).
-- ARGV app before('' for none, 'end', or a job's id) limit
return app_now(ARGV[1], ARGV[2], tonumber(ARGV[3]))
