#!lua flags=no-writes
-- The preview of a running job: {step, number, image}, or nothing.
-- KEYS preview
local shown = redis.call('HMGET', KEYS[1], 'step', 'number', 'image')
return shown[3] and shown or {}
