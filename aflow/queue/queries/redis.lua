-- The scripts of the queue in Redis (aflow/queue/redis.py). KEYS[1] is what the keys of the topic
-- begin with; ARGV[1] is how many deliveries a message may have, but for `put`.

-- name: _names
local WIDE = 1099511627776
local BELLS = 1000  -- that are kept at most
local function key(name) return KEYS[1] .. name end
local function now() local t = redis.call('TIME') return t[1] + t[2] / 1000000 end
local function group_of(id) return string.match(id, '^([^:]*):') or '' end
local function priority_of(id) return tonumber(redis.call('HGET', key('priority'), id) or 0) end
-- The score that is handed out next, of the messages of this priority.
local function first(priority)
  local lowest = -priority * WIDE
  local found = redis.call('ZRANGEBYSCORE', key('ready'), lowest, '(' .. string.format('%.0f',
    lowest + WIDE), 'WITHSCORES', 'LIMIT', 0, 1)
  return tonumber(found[2] or lowest)
end
local function ring()
  redis.call('RPUSH', key('bell'), '1')
  redis.call('LTRIM', key('bell'), -BELLS, -1)
end
local function come_back(id, limit)
  redis.call('HDEL', key('token'), id)
  if tonumber(redis.call('HGET', key('count'), id) or 0) >= limit then
    redis.call('ZADD', key('buried'), now(), id)
  else
    redis.call('ZADD', key('ready'), first(priority_of(id)), id)
    redis.call('ZADD', key('since'), now(), id)
    ring()
  end
end
local function settle(limit)
  local due = redis.call('ZRANGEBYSCORE', key('timed'), '-inf', now(), 'LIMIT', 0, 1000)
  for _, id in ipairs(due) do
    redis.call('ZREM', key('timed'), id)
    come_back(id, limit)
  end
end
local function forget(id)
  for _, name in ipairs({'ready', 'since', 'timed', 'buried'}) do
    redis.call('ZREM', key(name), id)
  end
  for _, name in ipairs({'body', 'count', 'token', 'priority'}) do
    redis.call('HDEL', key(name), id)
  end
end
local function is_known(id)
  if redis.call('HEXISTS', key('body'), id) == 0 then return false end
  for _, name in ipairs({'ready', 'timed', 'buried'}) do
    if redis.call('ZSCORE', key(name), id) then return true end
  end
  return false
end

-- name: _tidy
if redis.call('EXISTS', key('body')) == 0 then redis.call('DEL', key('turn'), key('bell')) end

-- name: _held
settle(tonumber(ARGV[1]))
local lost = {}
local function each(first, act)
  for i = first, #ARGV, 2 do
    if redis.call('HGET', key('token'), ARGV[i]) == ARGV[i + 1] then act(ARGV[i])
    else lost[#lost + 1] = ARGV[i] end
  end
end

-- name: put
-- ARGV: triples of id, body and priority.
{_names}
local news, last, bells = 0, {}, {}
local body, ready, since, began = key('body'), key('ready'), key('since'), now()
for i = 1, #ARGV, 3 do
  local id, priority = ARGV[i], tonumber(ARGV[i + 2])
  local is_new = redis.call('HSETNX', body, id, ARGV[i + 1]) == 1
  if is_new or not is_known(id) then
    local group = group_of(id) .. ':' .. priority
    if not last[group] then
      local score = first(priority)
      local before = redis.call('HGET', key('turn'), group)
      before = before and tonumber(redis.call('ZSCORE', key('ready'), before) or nil)
      last[group] = {math.max(score, before and before + 1 or score) - 1}
    end
    last[group][1], last[group][2] = last[group][1] + 1, id
    if not is_new then redis.call('HSET', body, id, ARGV[i + 1]) end
    redis.call('ZADD', ready, last[group][1], id)
    redis.call('ZADD', since, began, id)
    if priority ~= 0 then redis.call('HSET', key('priority'), id, priority) end
    news = news + 1
  end
end
for group, each in pairs(last) do redis.call('HSET', key('turn'), group, each[2]) end
for i = 1, math.min(news, BELLS) do bells[i] = '1' end
if news > 0 then
  redis.call('RPUSH', key('bell'), unpack(bells))
  redis.call('LTRIM', key('bell'), -BELLS, -1)
end
return news

-- name: lease
-- ARGV: limit of deliveries, messages, ttl, token, groups to skip. Returns the leases, when the
-- next one is due, and how many ready messages were skipped.
{_names}
settle(tonumber(ARGV[1]))
local wanted, skipped, found = tonumber(ARGV[2]), {}, {}
local due = now() + tonumber(ARGV[3])
for i = 5, #ARGV do skipped[ARGV[i]] = true end
local function take(id)
  redis.call('ZREM', key('since'), id)
  local body = redis.call('HGET', key('body'), id)
  if not body then forget(id) return end
  local token = ARGV[4] .. (#found + 1)
  redis.call('HSET', key('token'), id, token)
  redis.call('ZADD', key('timed'), due, id)
  local count = redis.call('HINCRBY', key('count'), id, 1)
  found[#found + 1] = {id, token, body, count, tostring(due)}
end
local place = 0
while #found < wanted do
  local ids
  if #ARGV == 4 then
    local pairs_ = redis.call('ZPOPMIN', key('ready'), wanted - #found)
    ids = {}
    for i = 1, #pairs_, 2 do ids[#ids + 1] = pairs_[i] end
    for _, id in ipairs(ids) do take(id) end
  else
    ids = redis.call('ZRANGE', key('ready'), place, place + 199)
    for _, id in ipairs(ids) do
      if #found < wanted and not skipped[group_of(id)] then
        redis.call('ZREM', key('ready'), id)
        take(id)
      else place = place + 1 end
    end
  end
  if #ids == 0 then break end
end
local next_due = redis.call('ZRANGE', key('timed'), 0, 0, 'WITHSCORES')[2]
if next_due then next_due = tostring(next_due - now()) end
return {found, next_due or false, place}

-- name: extend
{_names}
{_held}
local due = now() + tonumber(ARGV[2])
each(3, function(id) redis.call('ZADD', key('timed'), due, id) end)
return {lost, tostring(due)}

-- name: ack
{_names}
{_held}
local done = {}
each(2, function(id) done[#done + 1] = id end)
for first = 1, #done, 1000 do
  local some = {unpack(done, first, math.min(first + 999, #done))}
  redis.call('ZREM', key('timed'), unpack(some))
  for _, name in ipairs({'body', 'count', 'token', 'priority'}) do
    redis.call('HDEL', key(name), unpack(some))
  end
end
{_tidy}
return lost

-- name: release
{_names}
{_held}
each(4, function(id)
  redis.call('ZREM', key('timed'), id)
  redis.call('HDEL', key('token'), id)
  local count = redis.call('HINCRBY', key('count'), id, ARGV[3])
  if tonumber(ARGV[2]) > 0 and count < tonumber(ARGV[1]) then
    redis.call('ZADD', key('timed'), now() + tonumber(ARGV[2]), id)
  else come_back(id, tonumber(ARGV[1])) end
end)
return lost

-- name: bury
{_names}
{_held}
each(2, function(id)
  redis.call('ZREM', key('timed'), id)
  redis.call('HDEL', key('token'), id)
  redis.call('ZADD', key('buried'), now(), id)
end)
return lost

-- name: remove
{_names}
settle(tonumber(ARGV[1]))
for i = 3, #ARGV do
  if ARGV[2] == '1' or redis.call('HEXISTS', key('token'), ARGV[i]) == 0 then forget(ARGV[i]) end
end
{_tidy}
return 0

-- name: known
{_names}
local found = {}
for i = 2, #ARGV do if is_known(ARGV[i]) then found[#found + 1] = ARGV[i] end end
return found

-- name: drop
{_names}
for _, name in ipairs({'body', 'count', 'token', 'priority', 'ready', 'since', 'turn', 'timed',
                       'buried', 'bell'}) do
  redis.call('DEL', key(name))
end
return 0

-- name: buried
{_names}
settle(tonumber(ARGV[1]))
local found = {}
local ids = redis.call('ZRANGE', key('buried'), 0, tonumber(ARGV[2]) - 1, 'WITHSCORES')
for i = 1, #ids, 2 do
  found[#found + 1] = {ids[i], redis.call('HGET', key('body'), ids[i]) or '',
                       redis.call('HGET', key('count'), ids[i]) or 0, ids[i + 1]}
end
return found

-- name: redrive
{_names}
local redriven = 0
for i = 2, #ARGV do
  if redis.call('ZREM', key('buried'), ARGV[i]) == 1 then
    redis.call('HDEL', key('count'), ARGV[i])
    come_back(ARGV[i], tonumber(ARGV[1]))
    redriven = redriven + 1
  end
end
return redriven

-- name: peek
{_names}
settle(tonumber(ARGV[1]))
local found = {}
for _, id in ipairs(redis.call('ZRANGE', key('ready'), 0, tonumber(ARGV[2]) - 1)) do
  found[#found + 1] = {id, redis.call('HGET', key('body'), id) or ''}
end
return found

-- name: depth
{_names}
settle(tonumber(ARGV[1]))
local all = redis.call('HLEN', key('body'))
local leased = redis.call('HLEN', key('token'))
local buried = redis.call('ZCARD', key('buried'))
return {all - leased - buried, leased, buried}

-- name: longest_wait
{_names}
settle(tonumber(ARGV[1]))
local first = redis.call('ZRANGE', key('since'), 0, 0, 'WITHSCORES')[2]
return tostring(first and now() - first or 0)

-- name: announce
{_names}
if ARGV[3] == '' then
  redis.call('HDEL', key('body'), ARGV[2])
  redis.call('ZREM', key('until'), ARGV[2])
else
  redis.call('HSET', key('body'), ARGV[2], ARGV[3])
  redis.call('ZADD', key('until'), now() + tonumber(ARGV[4]), ARGV[2])
end
return 0

-- name: announced
{_names}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', key('until'), '-inf', now())) do
  redis.call('HDEL', key('body'), name)
  redis.call('ZREM', key('until'), name)
end
return redis.call('HGETALL', key('body'))
