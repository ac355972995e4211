-- Returns the bytes of a record. Of one that has lived for half of its time, it begins again.
-- KEYS: record, ends, sizes, bytes; ARGV: id, front of the names of records, life in ms.
local raw = redis.call('HGET', KEYS[1], 'raw')
local life = tonumber(ARGV[3])
if raw and redis.call('PTTL', KEYS[1]) < life / 2 then
  local now = redis.call('TIME')
  redis.call('ZADD', KEYS[2], now[1] * 1000 + life, ARGV[1])
  for _, name in ipairs(KEYS) do
    redis.call('PEXPIRE', name, life)
  end
end
return raw
