"""What Redis does in one step, in its own language: look whether there is room, take places, give them back.

A count with a window has a sorted set of held places (score: when), and either a hash (start and use of the fixed
window) or a sorted set with its sum (sliding). A session's counts without a window are fields of one hash, which goes
with the session. Amounts are pairs in base 10^9: a number in Lua is exact to 2^53 only, and a budget may be larger.
"""

from __future__ import annotations

COUNTING = """
local BASE = 1000000000
local PAGE = 64

local function now()
  if ARGV[2] ~= '' then return tonumber(ARGV[2]) end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local function text(number) return string.format('%.0f', number) end

-- Amounts: {high, low}, 0 <= low < BASE; high may be below zero.
local function pair(written)
  local high, low = string.match(written or '0:0', '^(%-?%d+):(%d+)$')
  return {tonumber(high), tonumber(low)}
end
local function written(amount) return text(amount[1]) .. ':' .. text(amount[2]) end
local function normal(high, low)
  local carry = math.floor(low / BASE)
  return {high + carry, low - carry * BASE}
end
local function plus(a, b) return normal(a[1] + b[1], a[2] + b[2]) end
local function minus(a, b) return normal(a[1] - b[1], a[2] - b[2]) end
local function is_positive(a) return a[1] > 0 or (a[1] == 0 and a[2] > 0) end

-- A place: '<name>:<high>:<low>'.
local function of_place(place) return pair(string.match(place, '(%-?%d+:%d+)$')) end

local function read_limit(keys, at)
  local limit = {
    kind = ARGV[at], field = ARGV[at + 1], window = tonumber(ARGV[at + 2]),
    amount = pair(ARGV[at + 3]), capacity = pair(ARGV[at + 4]), held = keys[1], used = keys[2], log = keys[3]}
  limit.place = ARGV[1] .. ':' .. ARGV[at + 5] .. ':' .. written(limit.amount)
  return limit
end

local function limits()
  local found, key = {}, 1
  for at = 3, #ARGV, 6 do
    found[#found + 1] = read_limit({KEYS[key], KEYS[key + 1], KEYS[key + 2]}, at)
    key = key + 3
  end
  return found
end

local function prune(limit, at)
  if limit.kind == 'session' then return end
  local over = text(at - limit.window)
  redis.call('ZREMRANGEBYSCORE', limit.held, '-inf', over)
  if limit.kind == 'fixed' then
    local start = redis.call('HGET', limit.used, 'start')
    if start and tonumber(start) <= at - limit.window then redis.call('DEL', limit.used) end
    return
  end
  local passed = redis.call('ZRANGEBYSCORE', limit.log, '-inf', over)
  if #passed > 0 then
    local sum = pair(redis.call('HGET', limit.used, 'sum') or nil)
    for _, place in ipairs(passed) do sum = minus(sum, of_place(place)) end
    redis.call('ZREMRANGEBYSCORE', limit.log, '-inf', over)
    if redis.call('EXISTS', limit.log) == 0 then
      redis.call('DEL', limit.used)
    else
      redis.call('HSET', limit.used, 'sum', written(sum))
    end
  end
end

local function taken(limit)
  if limit.kind == 'session' then return pair(redis.call('HGET', limit.held, limit.field) or nil) end
  local sum = pair(redis.call('HGET', limit.used, 'sum') or nil)
  for _, place in ipairs(redis.call('ZRANGE', limit.held, 0, -1)) do sum = plus(sum, of_place(place)) end
  return sum
end

-- Sorted by when they are free again: {at, amount}, read from a sorted set page by page.
local function cursor(key)
  local page, next_in_page, from = {}, 1, 0
  return function(take)
    if next_in_page > #page then
      page, next_in_page = redis.call('ZRANGE', key, from, from + PAGE - 1, 'WITHSCORES'), 1
      from = from + PAGE
      if #page == 0 then return nil end
    end
    local place, at = page[next_in_page], tonumber(page[next_in_page + 1])
    if take then next_in_page = next_in_page + 2 end
    return at, of_place(place)
  end
end

local function single(at, amount)
  return function(take)
    if at == nil then return nil end
    local found = at
    if take then at = nil end
    return found, amount
  end
end

-- 0: there is room; -1: waiting does not help; else the microseconds until there is.
local function wait(limit, at)
  local missing = minus(plus(taken(limit), limit.amount), limit.capacity)
  if not is_positive(missing) then return 0 end
  if limit.kind == 'session' or is_positive(minus(limit.amount, limit.capacity)) then return -1 end
  local one, other = cursor(limit.held), nil
  if limit.kind == 'sliding' then
    other = cursor(limit.log)
  else
    local start = redis.call('HGET', limit.used, 'start')
    other = single(start and tonumber(start) or nil, pair(redis.call('HGET', limit.used, 'sum') or nil))
  end
  while true do
    local first, second = one(false), other(false)
    if first == nil and second == nil then return -1 end
    local next = (second == nil or (first ~= nil and first <= second)) and one or other
    local freed, amount = next(true)
    missing = minus(missing, amount)
    if not is_positive(missing) then return math.max(1, freed + limit.window - at) end
  end
end

local function outlive(limit)
  local ms = text(math.ceil(limit.window / 1000) + 60000)
  redis.call('PEXPIRE', limit.held, ms)
  if limit.kind ~= 'session' then
    redis.call('PEXPIRE', limit.used, ms)
    redis.call('PEXPIRE', limit.log, ms)
  end
end

local function is_held(limit)
  if limit.kind == 'session' then
    return redis.call('HEXISTS', limit.held, limit.field .. ':' .. limit.place) == 1
  end
  return redis.call('ZSCORE', limit.held, limit.place) ~= false
end

-- Which is the first that has no room (0: none), and how long until all of them have.
local function exhausted(all, at)
  local first, longest = 0, 0
  for number, limit in ipairs(all) do
    prune(limit, at)
    local until_room = wait(limit, at)
    if until_room ~= 0 then
      if first == 0 then first = number end
      if until_room < 0 or longest < 0 then longest = -1 else longest = math.max(longest, until_room) end
    end
  end
  return first, longest
end
"""

PEEK = (
    COUNTING
    + """
local at = now()
local first, longest = exhausted(limits(), at)
return {first, text(longest), text(at)}
"""
)

RESERVE = (
    COUNTING
    + """
local at, all = now(), limits()
if #all > 0 and is_held(all[1]) then return {0, '0', text(at)} end -- by a try whose answer was lost
local first, longest = exhausted(all, at)
if first ~= 0 then return {first, text(longest), text(at)} end
for _, limit in ipairs(all) do
  if limit.kind == 'session' then
    redis.call('HSET', limit.held, limit.field, written(plus(taken(limit), limit.amount)))
    redis.call('HSET', limit.held, limit.field .. ':' .. limit.place, '')
  else
    redis.call('ZADD', limit.held, text(at), limit.place)
  end
  outlive(limit)
end
return {0, '0', text(at)}
"""
)

COMMIT = (
    COUNTING
    + """
for _, limit in ipairs(limits()) do
  if limit.kind == 'session' then
    redis.call('HDEL', limit.held, limit.field .. ':' .. limit.place)
  else
    local at = redis.call('ZSCORE', limit.held, limit.place)
    if at then
      redis.call('ZREM', limit.held, limit.place)
      local sum = plus(pair(redis.call('HGET', limit.used, 'sum') or nil), limit.amount)
      redis.call('HSET', limit.used, 'sum', written(sum))
      if limit.kind == 'fixed' then
        redis.call('HSETNX', limit.used, 'start', text(tonumber(at)))
      else
        redis.call('ZADD', limit.log, text(tonumber(at)), limit.place)
      end
      outlive(limit)
    end
  end
end
return 1
"""
)

RELEASE = (
    COUNTING
    + """
for _, limit in ipairs(limits()) do
  if limit.kind ~= 'session' then
    redis.call('ZREM', limit.held, limit.place)
  elseif redis.call('HDEL', limit.held, limit.field .. ':' .. limit.place) == 1 then
    redis.call('HSET', limit.held, limit.field, written(minus(taken(limit), limit.amount)))
  end
end
return 1
"""
)

TALLY = """
local count = redis.call('INCR', KEYS[1])
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return {count, redis.call('PTTL', KEYS[1])}
"""
