-- Runs in Envoy (LuaJIT) on each answer: copies the reported usage into the metadata that the access log writes, and
-- removes from a stream the usage that its caller did not ask for. It does not interpret usage or decide anything. If
-- the script fails, the answer passes unchanged, and its call is charged by an estimate.
--
-- usage_filter.py defines NAMESPACE, the name of the metadata, and REDACTION, a UsageRedaction, in front of it.
--
-- Lua patterns are slow, and patterns that start with a repetition scan a text many times. Therefore long texts are
-- searched for plain words.

local byte, find, match, sub, concat = string.byte, string.find, string.match, string.sub, table.concat

-- The maximum length of a line in which usage is redacted; a longer line passes unchanged.
local LONGEST_REDACTED = 1048576
-- The maximum length of a line that is buffered to read usage; of a longer line only LONGEST_USAGE bytes are kept.
local LONGEST_KEPT = 65536
local LONGEST_USAGE = 4096
-- Objects at the top level of a document that may contain the usage.
local WITHIN = { message = true, response = true }

-- The number of backslashes directly before `place`, not before `from`.
local function backslashes(text, from, place)
  local at = place - 1
  while at >= from and byte(text, at) == 92 do at = at - 1 end
  return place - 1 - at
end

-- The position of the closing quote of a string; or nil, and the position to continue at with more text.
local function closing(text, at)
  local stop = find(text, '"', at, true)
  while stop and backslashes(text, at, stop) % 2 == 1 do
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

-- A reader of one JSON document that arrives in pieces. Called with each piece, it returns the usage once, as text,
-- and the name of the top-level object that contains it. Only keys at these levels count: text of the model or the
-- caller is in strings or deeper.
local function document()
  local rest, in_string, depth, name, within = "", false, 0, nil, nil
  return function(text)
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
          if value and first == 123 and sub(text, from, stop) == '"usage"' then
            local usage = match(text, "^%b{}", value)
            if usage then return usage, depth == 2 and within or nil end
            if short then
              rest = sub(text, from)
              return
            end
          end
          if depth == 1 then name = value and first == 123 and sub(text, from + 1, stop - 1) end
        end
      end
    end
  end
end

-- The start of the last line that starts before `place`; `from` is on that line or before it.
local function line_of(text, from, place)
  local line, at = from, find(text, "\n", from, true)
  while at and at < place do
    line, at = at + 1, find(text, "\n", at + 1, true)
  end
  return line
end

-- A reader of a stream's events. Called with each piece, it reports the usage of the last event that has one, and of
-- the first, which has the input tokens in Anthropic's streams. Most events are never parsed as documents.
local function events(report)
  local begun = false

  local function read_lines(text)
    -- Candidate lines: the position of the word, and the end of the line. Each is read once, whatever it contains.
    local spots, stops, at = {}, {}, find(text, '"usage"', 1, true)
    while at do
      local _, first = value_behind(text, at + 7)
      if first == 123 then
        spots[#spots + 1] = at
        at = find(text, "\n", at, true) or #text
        stops[#stops + 1] = at
      end
      at = find(text, '"usage"', at + 1, true)
    end
    local function read(number)
      local line = line_of(text, (stops[number - 1] or 0) + 1, spots[number])
      return document()(sub(text, line, stops[number]))
    end
    local last = #spots
    while last > 0 and not report(read(last)) do last = last - 1 end
    if last > 0 and not begun then
      begun = true
      local usage, within = read(1)
      if within == "message" then report(usage, within) end
    end
  end

  local held, size, long = {}, 0, nil
  return function(text)
    if long then
      local stop = find(text, "\n", 1, true)
      report(long(sub(text, 1, stop)))
      if not stop then return end
      text, long = sub(text, stop + 1), nil
    end
    local whole = byte(text, -1) == 10 and #text or line_of(text, 1, #text + 1) - 1
    if whole > 0 then
      held[#held + 1] = sub(text, 1, whole)
      read_lines(concat(held))
      held, size, text = {}, 0, sub(text, whole + 1)
    end
    held[#held + 1], size = text, size + #text
    if size > LONGEST_KEPT then
      long = document()
      report(long(concat(held)))
      held, size = {}, 0
    end
  end
end

-- Complete lines of a stream without redacted usage, and whether the following blank line is removed too. Text of the
-- model cannot look like these names, because its quotes are escaped in JSON. The event without choices has the usage
-- of the whole stream.
local function redacted(text)
  local parts, from, line, stop = {}, 1, 1, 0
  local at = find(text, '"usage"', 1, true)
  while at do
    while stop < at do
      line = stop + 1
      stop = find(text, "\n", line, true)
    end
    local on = at + 1
    local _, last = find(text, '^"usage"%s*:%s*%b{}', at)
    if last and last < stop then
      local choices = find(text, '"choices"', line, true)
      if choices and choices < stop and find(text, '^"choices"%s*:%s*%[%s*%]', choices) then
        on = stop
        if REDACTION == "all" then
          parts[#parts + 1] = sub(text, from, line - 1)
          local _, blank = find(text, "^\r?\n", stop + 1)
          from = (blank or stop) + 1
          if from > #text then return concat(parts), not blank end
        end
      else
        parts[#parts + 1] = sub(text, from, at - 1)
        parts[#parts + 1] = '"usage":null'
        from, on = last + 1, last
      end
    end
    at = find(text, '"usage"', on, true)
  end
  parts[#parts + 1] = sub(text, from)
  return concat(parts), false
end

-- A redactor of a stream, piece by piece. An incomplete line is held back; at the end of a stream it is not an event,
-- and is dropped.
local function redactor()
  local held, size, blank, passes = {}, 0, false, REDACTION == ""
  return function(bytes)
    if passes then return bytes end
    local whole = byte(bytes, -1) == 10 and #bytes or line_of(bytes, 1, #bytes + 1) - 1
    if whole > 0 then
      held[#held + 1] = sub(bytes, 1, whole)
      local text = concat(held)
      held, size = { sub(bytes, whole + 1) }, #bytes - whole
      if blank then text = text:gsub("^\r?\n", "") end
      text, blank = redacted(text)
      return text
    end
    held[#held + 1], size = bytes, size + #bytes
    if size <= LONGEST_REDACTED then return "" end
    passes = true
    return concat(held)
  end
end

-- A function that stores usage for the log, if there is any, and returns it. Envoy's metadata object is valid only until
-- the next piece.
local function reporter(handle)
  return function(usage, within)
    if usage then
      handle:streamInfo():dynamicMetadata():set(NAMESPACE, within == "message" and "first" or "last", usage)
    end
    return usage
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local kind = (headers:get("content-type") or ""):lower()
  local report = reporter(handle)
  if sub(kind, 1, 16) == "application/json" then
    local read, reported = document(), nil
    for chunk in handle:bodyChunks() do
      reported = reported or report(read(chunk:getBytes(0, chunk:length())))
    end
  elseif sub(kind, 1, 17) == "text/event-stream" then
    if REDACTION ~= "" then headers:remove("content-length") end
    local read, redact = events(report), redactor()
    for chunk in handle:bodyChunks() do
      local bytes = chunk:getBytes(0, chunk:length())
      read(bytes)
      local seen = redact(bytes)
      if seen ~= bytes then chunk:setBytes(seen) end
    end
  end
end
