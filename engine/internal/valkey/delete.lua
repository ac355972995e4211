-- Takes a record out, and returns how many there were.
-- KEYS: record, ends, sizes, bytes; ARGV: id, front of the names of records, life in ms.
redis.call('DECRBY', KEYS[4], redis.call('HGET', KEYS[3], ARGV[1]) or 0)
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return redis.call('DEL', KEYS[1])
