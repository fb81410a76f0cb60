-- Reads JSON documents and the events of streams that arrive in pieces. The first of the parts of the filter of answers;
-- the others are text_counter.lua, usage_reader.lua and response_filter.lua.
--
-- response_filter.py defines in front of it WITHIN of metering/dialects.py: objects at the top level of a document that
-- may have the usage or the error of the answer.
--
-- Lua patterns are slow, and patterns that start with a repetition scan a text many times. Therefore long texts are
-- searched for plain words. Text of a model or a caller is inside of JSON strings, where quotes are escaped: an
-- unescaped name in quotes is always a part of the document itself.

local byte, find, match, sub, gsub = string.byte, string.find, string.match, string.sub, string.gsub
local concat, tonumber = table.concat, tonumber

-- The maximum length of an event that is buffered; of a longer one, only LONGEST_USAGE bytes are kept to read usage,
-- and it passes unchanged.
local LONGEST_EVENT = 262144
local LONGEST_USAGE = 4096
-- The length of a key with its colon, as far as text is counted.
local LONGEST_KEY = 63
-- The length of an error that is read.
local LONGEST_ERROR = 65536
-- An API without text, such as a list of models.
local NO_DIALECT = { text = {}, document_text = {}, final = "no choices" }

-- Positions in a text.

-- The number of backslashes directly before `place`, not before `from`.
local function backslashes(text, from, place)
  local at = place - 1
  while at >= from and byte(text, at) == 92 do at = at - 1 end
  return place - 1 - at
end

-- The position of the closing quote of a string; or nil, and the position to continue at with more text.
local function closing(text, at)
  local stop = find(text, '"', at, true)
  while stop and byte(text, stop - 1) == 92 and backslashes(text, at, stop) % 2 == 1 do
    stop = find(text, '"', stop + 1, true)
  end
  if stop then return stop end
  return nil, #text + 1 - backslashes(text, at, #text + 1) % 2
end

-- The position of the first byte from `at` on that is not white space, and the byte; nil at the end of the text.
local function behind_space(text, at)
  local sign = byte(text, at)
  while sign == 32 or sign == 10 or sign == 13 or sign == 9 do
    at = at + 1
    sign = byte(text, at)
  end
  return at, sign
end

-- The position of the first quote or brace from `at` on, and the byte; nil at the end of the text.
local function next_sign(text, at)
  local sign = byte(text, at)
  while sign and sign ~= 34 and sign ~= 123 and sign ~= 125 do
    at = at + 1
    sign = byte(text, at)
  end
  return at, sign
end

-- The position of the value of a key that ends before `at`, and its first byte, which is nil if the text ends before
-- it. Without a colon it is not a key: nil, and the byte found instead.
local function value_behind(text, at)
  local colon, sign = behind_space(text, at)
  if sign ~= 58 then return nil, sign end
  return behind_space(text, colon + 1)
end

-- The position of a key from `from` on, and the position behind it; `word` is the key without its first quote. Documents
-- are full of quotes, so a search that begins with one is slow.
local function find_key(text, word, from)
  local at, stop = find(text, word, from, true)
  while at do
    if byte(text, at - 1) == 34 then return at - 1, stop + 1 end
    at, stop = find(text, word, stop + 1, true)
  end
end

-- The position of the last byte of the event that contains `at`: that of its blank line, or of the text. Lines end with
-- LF, CRLF or CR.
local function event_end(text, at, has_cr)
  if not has_cr then
    local _, stop = find(text, "\n\n", at, true)
    return stop or #text
  end
  local sign = find(text, "[\r\n]", at)
  while sign do
    local behind = sign + 1
    if byte(text, sign) == 13 and byte(text, behind) == 10 then behind = behind + 1 end
    local blank = byte(text, behind)
    if blank == 10 then return behind end
    if blank == 13 then return byte(text, behind + 1) == 10 and behind + 1 or behind end
    sign = find(text, "[\r\n]", behind)
  end
  return #text
end

-- The position of the last byte of the last complete event, if it is at `from` or behind it; 0 without one.
local function last_event_end(text, from)
  for at = #text, math.max(from, 2), -1 do
    local sign = byte(text, at)
    if sign == 10 or sign == 13 then
      local before = byte(text, at - 1)
      if sign == 10 and before == 13 then before = byte(text, at - 2) end
      if before == 10 or before == 13 then return at end
    end
  end
  return 0
end

-- Reading.

-- A reader of JSON documents that arrive in pieces. Called with each piece, it calls found(name, within, text, value)
-- for names at the top level of a document or in a WITHIN object of it: "usage" with the position of an object that is
-- complete in the text, "error" and "type" with the position of any value; others once, at the top level. It stops if
-- `found` returns true. Text of the model or the caller is in strings or deeper.
local function document(found)
  local rest, in_string, depth, name, within, stopped = "", false, 0, nil, nil, false
  return function(text)
    if stopped then return end
    if rest ~= "" then text, rest = rest .. text, "" end
    local at = 1
    if in_string then
      local stop, on = closing(text, 1)
      if not stop then
        rest = sub(text, on)
        return
      end
      at, in_string = stop + 1, false
    end
    while true do
      local from, sign = next_sign(text, at)
      if not sign then return end
      at = from + 1
      if sign == 123 then
        depth = depth + 1
        if depth == 2 then within = WITHIN[name] and name end
      elseif sign == 125 then
        depth = depth - 1
      else
        local counts = depth == 1 or (depth == 2 and within)
        local short = counts and #text - from < LONGEST_USAGE
        local stop, on = closing(text, at)
        if not stop then
          in_string = not short
          rest = sub(text, short and from or on)
          return
        end
        at = stop + 1
        if counts then
          local value, first = value_behind(text, at)
          if short and not first then
            rest = sub(text, from)
            return
          end
          local key = value and sub(text, from + 1, stop - 1)
          if depth == 1 then name = (first == 123 or first == 91) and key end
          if key == "usage" then
            if first == 123 then
              local whole = match(text, "^%b{}()", value)
              if not whole and short then
                rest = sub(text, from)
                return
              end
              if whole then
                if found(key, depth == 2 and within or nil, text, value) then
                  stopped = true
                  return
                end
                at = whole
              end
            end
          elseif key == "type" and first == 34 then
            -- A value is not a key: it is read whole, and skipped.
            local last = closing(text, value + 1)
            if not last and #text - value < LONGEST_USAGE then
              rest = sub(text, from)
              return
            end
            if found(key, depth == 2 and within or nil, text, value) then return end
            at = (last or value) + 1
          elseif key and (depth == 1 or key == "error") then
            if found(key, depth == 2 and within or nil, text, value) then return end
          end
        end
      end
    end
  end
end

-- Whether a value, at its position, is an error: anything but null, false, an empty text or an empty object.
local function is_error(text, value)
  return not match(text, "^null", value) and not match(text, "^false", value) and not match(text, '^""', value)
    and not match(text, "^{%s*}", value)
end
