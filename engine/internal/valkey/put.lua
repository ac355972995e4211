-- Writes a record of the version that follows the one there, and makes room for it.
-- KEYS: record, ends, sizes, bytes; ARGV: id, front of the names of records, life in ms, version,
-- bytes of the record, how many the tenant may have.
local id, front, life, version, raw, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
if version <= tonumber(redis.call('HGET', KEYS[1], 'version') or 0)
  or version > 1 and redis.call('EXISTS', KEYS[1]) == 0 then
  return 'conflict' -- it was changed, or deleted
end
local size = #raw + 3 * #id + 64
if size > most then
  return 'large'
end
local clock = redis.call('TIME')
local now = clock[1] * 1000

local function drop(name)
  redis.call('DECRBY', KEYS[4], redis.call('HGET', KEYS[3], name) or 0)
  redis.call('HDEL', KEYS[3], name)
  redis.call('ZREM', KEYS[2], name)
  redis.call('DEL', front .. name)
end

for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 100)) do
  drop(name)
end
drop(id)
while tonumber(redis.call('GET', KEYS[4]) or 0) + size > most do
  local oldest = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
  if not oldest then
    redis.call('SET', KEYS[4], 0)
    break
  end
  drop(oldest)
end
redis.call('HSET', KEYS[1], 'version', ARGV[4], 'raw', raw)
redis.call('ZADD', KEYS[2], now + life, id)
redis.call('HSET', KEYS[3], id, size)
redis.call('INCRBY', KEYS[4], size)
for _, name in ipairs(KEYS) do
  redis.call('PEXPIRE', name, life)
end
return 'ok'
