-- Runs in Envoy (LuaJIT) on each answer of an upstream:
--   * it removes the headers that are not allowed, and adds those of the decision;
--   * it replaces errors that are not about the caller's request;
--   * it copies the reported usage into the metadata that the access log writes, and counts the text that was not
--     reported yet;
--   * it removes from a stream the usage that its caller did not ask for.
-- It does not interpret usage, and no price depends on it alone: metering/usage.py decides what a call pays. If the
-- script fails, the rest of the answer passes unchanged, and its call is charged by what is known.
--
-- response_filter.py defines in front of it: RULES, USAGE and LOCAL_REPLY, names; ALLOWED, the headers that pass;
-- ERRORS, the texts of replaced errors; and the tables of metering/dialects.py: DIALECTS, WITHIN (objects at the top
-- level of a document that may have the usage or the error of the answer) and ANSWERS (fields at the top level of an
-- answer).
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
-- The length of an error that is read.
local LONGEST_ERROR = 65536
-- An API without text, such as a list of models.
local NO_DIALECT = { text = {}, document_text = {}, final = "no choices" }
-- The last usage of a stream whose usage is added up.
local SUMS = "{}"

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

-- The position of the last byte of the last complete event; 0 without one.
local function last_event_end(text)
  for at = #text, 2, -1 do
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

-- Whether usage has a number of tokens that is not 0. A provider that ends with zeros takes nothing back.
local function has_tokens(usage) return find(usage, '_tokens"%s*:%s*[1-9]') end

-- Counting text.

-- A counter of texts: the number of pieces of text, and their characters by what they mean for tokens: bytes of ASCII,
-- other letters, ideographs, and symbols beyond the basic plane.
local function counter(names)
  local pieces, ascii, letters, ideographs, symbols = 0, 0, 0, 0, 0
  local inside = false
  local self = {}

  local function add_special(text)
    local count
    text, count = gsub(text, "\\u[dD][89abAB]%x%x\\u%x%x%x%x", "")
    symbols = symbols + count
    text, count = gsub(text, "\\u[3-9a-fA-F]%x%x%x", "")
    ideographs = ideographs + count
    text, count = gsub(text, "\\u[012]%x%x%x", "")
    letters = letters + count
    text = gsub(text, "\\.", "n")
    text, count = gsub(text, "[\240-\244][\128-\191]*", "")
    symbols = symbols + count
    text, count = gsub(text, "[\227-\239][\128-\191]*", "")
    ideographs = ideographs + count
    text, count = gsub(text, "[\194-\226][\128-\191]*", "")
    letters = letters + count
    ascii = ascii + #text
  end

  -- Counts the string from `from` to before `stop`.
  local function add(text, from, stop)
    if stop <= from then return end
    pieces = pieces + 1
    for at = from, stop - 1 do
      local sign = byte(text, at)
      if sign == 92 or sign > 127 then
        add_special(sub(text, from, stop - 1))
        return
      end
    end
    ascii = ascii + stop - from
  end

  local function count_field(text, field, from)
    local found, arrays = false, false
    local at = find(text, field, from, true)
    while at do
      at = at + #field
      local value, first = value_behind(text, at)
      if first == 34 then
        local stop = closing(text, value + 1)
        add(text, value + 1, stop or #text + 1)
        found = true
        if not stop then
          inside = true
          return found, arrays
        end
        at = stop + 1
      elseif first == 91 then
        arrays = true
      end
      at = find(text, field, at, true)
    end
    return found, arrays
  end

  -- Counts the texts from `from` on. A string that does not end continues in the next text.
  function self.count(text, from)
    if inside then
      local stop = closing(text, from)
      add(text, from, stop or #text + 1)
      if not stop then return end
      inside, from = false, stop + 1
    end
    local skip
    for number = 1, #names do
      local field = names[number]
      if field ~= skip then
        local found, arrays = count_field(text, field, from)
        -- Some servers send the same text under both names, during a change from one to the other.
        if found and field == '"reasoning_content"' then skip = '"reasoning"' end
        -- Text may be in parts: {"content": [{"type": "text", "text": ...}]}.
        if arrays and field == '"content"' and not find(text, '"logprobs"', from, true) then
          count_field(text, '"text"', from)
        end
      end
    end
  end

  function self.reset() pieces, ascii, letters, ideographs, symbols = 0, 0, 0, 0, 0 end
  function self.size() return ascii + 3 * (letters + ideographs + symbols) end
  function self.text() return pieces .. " " .. ascii .. " " .. letters .. " " .. ideographs .. " " .. symbols end
  return self
end

-- The report for the access log. `set` stores a field of it. The client may leave at any time, so it is current after
-- each piece; the counts are updated when they grow by a sixteenth, because storing costs more than counting.
local function report(set, names)
  local texts, reported, counted = counter(names), 0, false
  local self = {}

  function self.count(text, from) texts.count(text, from) end

  -- Stores the counts if they have changed enough.
  function self.store(always)
    local size = texts.size()
    if always or size > reported + reported / 16 then
      reported, counted = size, true
      set("content", texts.text())
    end
  end

  -- Stores usage; true if what was counted before is in it. Some report the input alone.
  function self.usage(name, text)
    if #names > 0 and text ~= SUMS and not find(text, 'completion_tokens"', 1, true)
      and not find(text, 'output_tokens"', 1, true) then
      set("first", text)
      return false
    end
    set(name, text)
    texts.reset()
    reported = 0
    if counted then
      counted = false
      set("content", "")
    end
    return true
  end

  return self
end

-- A reader of usage that each event reports for one of several answers: it adds up the last usage of each.
local function sums(set)
  local inputs, outputs, seen, input, output = {}, {}, 0, 0, 0
  return function(event, usage)
    local index = match(event, '"index"%s*:%s*(%d+)') or "0"
    local prompt = tonumber(match(usage, '"prompt_tokens"%s*:%s*(%d+)') or 0)
    local completion = tonumber(match(usage, '"completion_tokens"%s*:%s*(%d+)') or 0)
    if not inputs[index] then
      seen = seen + 1
      inputs[index], outputs[index] = 0, 0
    end
    input, output = input + prompt - inputs[index], output + completion - outputs[index]
    inputs[index], outputs[index] = prompt, completion
    set("choices", seen .. " " .. input .. " " .. output)
  end
end

-- Whether the usage in an event covers the whole stream, which ends with it.
local function is_final(dialect, event, within)
  if dialect.final == "response" then return within == "response" end
  if dialect.final == "stop reason" then return not within and find(event, '"stop_reason"%s*:%s*"') end
  local choices = find(event, '"choices"', 1, true)
  return not within and (not choices or find(event, '^"choices"%s*:%s*%[%s*%]', choices))
end

-- The start of the event that contains `place`; `from` is in that event or before it.
local function event_start(text, from, place)
  local start, _, stop = from, find(text, "\n\n", from, true)
  while stop and stop < place do
    start = stop + 1
    _, stop = find(text, "\n\n", start, true)
  end
  return start
end

-- A reader of a stream's complete events. It stores the first usage within a message, which has the input of Anthropic's
-- streams, and the last usage; whether the latter is final; whether the stream has failed; and counts the text after the
-- last usage. Most events are never parsed as documents.
local function events(set, dialect, choices, by_choice)
  local reports = report(set, dialect.text)
  local add_up = choices > 1 and sums(set)
  local begun, failed, usage = false, false, nil

  local function fail()
    if not failed then set("failed", "1") end
    failed = true
  end

  -- Reads one event with usage; true if it has any at one of the known places.
  local function read_usage(event)
    local seen = false
    document(function(name, within, text, value)
      if name ~= "usage" then return end
      local reported = match(text, "^%b{}", value)
      if not has_tokens(reported) then return end
      seen = true
      if within == "message" then
        if not begun then reports.usage("first", reported) end
        begun = true
      elseif is_final(dialect, event, within) then
        usage = nil
        reports.usage("final", reported)
      elseif add_up and (by_choice or within == "choices") then
        add_up(event, reported)
        reports.usage("last", SUMS)
      else
        usage = reported
        reports.usage("last", reported)
      end
    end)(event)
    return seen
  end

  -- The positions of the candidates for usage, each in an event of its own.
  local function candidates(text)
    local spots, at = {}, find(text, '"usage"', 1, true)
    while at do
      local _, first = value_behind(text, at + 7)
      if first == 123 then
        spots[#spots + 1] = at
        at = event_end(text, at, false)
      end
      at = find(text, '"usage"', at + 1, true)
    end
    return spots
  end

  -- Reads usage; returns the position behind the last event with usage, from which text is counted.
  local function read_all_usage(text)
    local spots = candidates(text)
    local function read(spot)
      local start, stop = event_start(text, 1, spot), event_end(text, spot, false)
      local event = sub(text, find(text, "{", start, true) or start, stop)
      -- One event may have several lines of data.
      if find(event, "\ndata", 1, true) then event = gsub(event, "\ndata: ?", "\n") end
      return read_usage(event) and stop + 1
    end
    local behind, from = nil, 1
    if add_up then
      for number = 1, #spots do behind = read(spots[number]) or behind end
      return behind or 1
    end
    if dialect.final == "stop reason" and not begun and spots[1] then
      behind, from = read(spots[1]), 2
    end
    local number = #spots
    while number >= from do
      local last = read(spots[number])
      if last then return last end
      number = number - 1
    end
    return behind or 1
  end

  -- Reads the candidates for errors.
  local function read_errors(text)
    local at = find(text, '"error"', 1, true)
    while at and not failed do
      local value, sign = value_behind(text, at + 7)
      -- Many events have "error": null; and "type": "error" is a value.
      if not value and sign or value and is_error(text, value) then
        local start = event_start(text, 1, at)
        document(function(name, within, event, place)
          if name == "error" and is_error(event, place) and within ~= "choices"
            or name == "type" and not within and match(event, '^"error"', place) then fail() end
        end)(sub(text, start, event_end(text, at, false)))
      end
      at = find(text, '"error"', at + 7, true)
    end
  end

  local self = {}

  function self.read(text)
    if find(text, "\r", 1, true) then text = gsub(text, "\r\n?", "\n") end
    local from = 1
    if find(text, '"usage"', 1, true) then from = read_all_usage(text) end
    if find(text, '"error"', 1, true) then read_errors(text) end
    if from <= #text then
      reports.count(text, from)
      reports.store(false)
    end
    -- Usage in an event with text is final if nothing follows.
    if usage and (find(text, "[DONE]", 1, true) and match("\n" .. text, "\ndata: ?%[DONE%]")
      or choices == 1 and find(text, '"finish_reason"%s*:%s*"')) then
      set("final", usage)
      usage = nil
    end
  end

  -- A reader of an event that is too long to be buffered.
  function self.long()
    return document(function(name, within, text, value)
      if name == "usage" then
        local reported = match(text, "^%b{}", value)
        if not has_tokens(reported) then return end
        local final = dialect.final == "response" and within == "response"
        reports.usage(final and "final" or "last", reported)
        usage = not final and reported or nil
      elseif name == "error" and is_error(text, value) and within ~= "choices" then
        fail()
      end
    end)
  end

  return self
end

-- A reader of an answer in one document, called with each piece of it.
local function answer(set, dialect)
  local reports = report(set, dialect.document_text)
  local reported, answers, failed = false, false, false
  local read = document(function(name, within, text, value)
    if name == "usage" then
      local usage = match(text, "^%b{}", value)
      if has_tokens(usage) then reported = reports.usage("final", usage) end
    elseif name == "error" and not within and is_error(text, value)
      or (name == "type" or name == "object") and not within and match(text, '^"error"', value) then
      -- Nothing was delivered, whatever usage it reports.
      if not failed then set("shape", "other") end
      failed = true
    elseif ANSWERS[name] then
      answers = true
    end
  end)
  return function(text)
    read(text)
    if not reported and not failed then
      reports.count(text, 1)
      if answers then reports.store(true) end
    end
  end
end

-- Removing usage.

-- Complete events of a stream without redacted usage. In the event without choices, which has the usage of the whole
-- stream, the caller asked for neither.
local function redacted(text, redaction)
  local has_cr = find(text, "\r", 1, true)
  local parts, from, start, stop = {}, 1, 1, 0
  local at = find(text, '"usage"', 1, true)
  while at do
    while stop < at do
      start = stop + 1
      stop = event_end(text, start, has_cr)
    end
    local on = at + 1
    local _, last = find(text, '^"usage"%s*:%s*%b{}', at)
    if last and last < stop then
      local choices = find(text, '"choices"', start, true)
      if choices and choices < stop and find(text, '^"choices"%s*:%s*%[%s*%]', choices) then
        on = stop
        if redaction == "all" then
          parts[#parts + 1] = sub(text, from, start - 1)
          from = stop + 1
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
  return concat(parts)
end

-- Answers.

-- The shape of an answer by its first bytes: "document", "events" or "other"; nil without any. The type that
-- the upstream gives is not reliable: some send errors typed as streams, or JSON typed as text.
local function shape_of(kind, text)
  local at, sign = behind_space(text, 1)
  if sign == 239 then at, sign = behind_space(text, at + 3) end
  if not sign then return nil end
  if sign == 123 or sign == 91 then return "document" end
  if sign == 60 then return "other" end
  if find(kind, "event-stream", 1, true) then return "events" end
  -- The first letters of data, event, id, retry, and a comment.
  if sign == 100 or sign == 101 or sign == 105 or sign == 114 or sign == 58 then return "events" end
  return "other"
end

-- Passes a stream through the reader, and its usage through the redaction. What is not yet a complete event is held
-- back, if usage may have to be removed from it, and passes at the end of the stream.
local function stream(set, rules)
  local reader = events(set, rules.dialect, rules.choices, rules.by_choice)
  local redaction = rules.redaction
  local held, size, long = {}, 0, nil

  -- The bytes to send for a piece.
  local function piece(bytes)
    if long then
      local stop = last_event_end(bytes)
      long(stop > 0 and sub(bytes, 1, stop) or bytes)
      if stop == 0 then return bytes end
      long = nil
      held[1], size = sub(bytes, stop + 1), #bytes - stop
      if redaction == "" then return bytes end
      return sub(bytes, 1, stop)
    end
    held[#held + 1], size = bytes, size + #bytes
    local stop, text = 0, bytes
    if #held == 1 then
      stop = last_event_end(text)
    elseif find(bytes, "[\r\n]") then
      text = concat(held)
      held = { text }
      stop = last_event_end(text)
    end
    local out = redaction == "" and bytes or ""
    if stop > 0 then
      local whole = stop == #text and text or sub(text, 1, stop)
      held, size = { stop < #text and sub(text, stop + 1) or nil }, #text - stop
      reader.read(whole)
      if redaction ~= "" then out = redacted(whole, redaction) end
    end
    if size > LONGEST_EVENT then
      long = reader.long()
      text = concat(held)
      long(text)
      held, size = {}, 0
      if redaction ~= "" then out = out .. text end
    end
    return out
  end

  -- The bytes to send at the end of the stream.
  local function rest()
    if size == 0 then return "" end
    local text = concat(held)
    reader.read(text)
    if redaction == "" then return "" end
    return redacted(text, redaction)
  end

  return piece, rest
end

local function pass_body(handle, set, kind, rules)
  local shape, read, piece, rest, last
  for chunk in handle:bodyChunks() do
    last = chunk
    local bytes = chunk:getBytes(0, chunk:length())
    if not shape then
      shape = shape_of(kind, bytes)
      if shape == "events" then
        piece, rest = stream(set, rules)
      elseif shape == "document" then
        read = answer(set, rules.dialect)
      elseif shape then
        set("shape", shape)
      end
    end
    if piece then
      local out = piece(bytes)
      if out ~= bytes then chunk:setBytes(out) end
    elseif read then
      read(bytes)
    end
  end
  local held = rest and rest() or ""
  -- The last chunk is still writable, unless the answer ended with trailers.
  if held ~= "" then pcall(function() last:setBytes(last:getBytes(0, last:length()) .. held) end) end
end

-- Removes all headers that are not allowed, and adds those of the decision.
local function filter_headers(headers, added)
  local removed = {}
  for name in pairs(headers) do
    if not ALLOWED[name] then removed[#removed + 1] = name end
  end
  for number = 1, #removed do headers:remove(removed[number]) end
  if added then
    for name, value in string.gmatch(added, "([^:\n]+): ([^\n]*)") do headers:replace(name, value) end
  end
end

-- A text without what may be a part of a key, or the name of an organization.
local function masked(text)
  return (gsub(text, "[%w_%-%*]+", function(word)
    if find(word, "*", 1, true) or find(word, "^sk%-") or find(word, "^org%-") or find(word, "^proj_")
      or match(word, "%w%w%w%w%w%w%w%w%w%w%w%w%w%w%w%w%w%w%w%w") then return "***" end
  end))
end

-- The name of the error in ERRORS by which an upstream's error is replaced; nil: it is about the caller's request.
-- Some providers refuse credentials with 400, and lack of money with 429.
local function replaced_by(status, text)
  if status == 401 or status == 402 or status == 403 or status == 407 then return "refused" end
  if status < 400 then return "redirected" end
  text = text:lower()
  if find(text, "api[ _%-]?key") or find(text, "insufficient_quota", 1, true) or find(text, "insufficient balance", 1, true)
    or find(text, "credit balance", 1, true) then return "refused" end
  if status == 429 then return "limited" end
  if status >= 500 then return "failed" end
  return nil
end

-- Replaces an error that has to do with the gateway's operator or the upstream. What the upstream said goes to the log.
local function pass_error(handle, set, status, rules)
  local body = handle:body(true)
  local text = masked(body:getBytes(0, math.min(body:length(), LONGEST_ERROR)))
  set("error", sub(text, 1, 512))
  local name = replaced_by(status, text)
  if not name then
    body:setBytes(text)
    return
  end
  local error = ERRORS[name]
  body:setBytes((gsub(error[rules.name] or error.other, "REQUEST_ID", rules.request_id)))
  local headers = handle:headers()
  headers:replace("content-type", "application/json")
  if error.status > 0 then headers:replace(":status", tostring(error.status)) end
end

-- The rules of the decision: "DIALECT REDACTION CHOICES BY_CHOICE REQUEST_ID".
local function read_rules(text)
  local dialect, redaction, choices, by_choice, request_id = match(text, "^(%S*) (%S*) (%d+) (%d) (.*)")
  return {
    name = dialect,
    dialect = DIALECTS[dialect] or NO_DIALECT,
    redaction = redaction,
    choices = tonumber(choices),
    by_choice = by_choice == "1",
    request_id = request_id,
  }
end

function envoy_on_response(handle)
  local headers = handle:headers()
  -- Envoy's own replies to a call that was forwarded are in the gateway's format already.
  if headers:get(LOCAL_REPLY) then
    headers:remove(LOCAL_REPLY)
    return
  end
  local decision = handle:streamInfo():dynamicMetadata():get(RULES)
  if not decision then return end
  local status = tonumber(headers:get(":status")) or 0
  local kind = (headers:get("content-type") or ""):lower()
  local rules = read_rules(decision.rules)
  local encoded = headers:get("content-encoding")
  filter_headers(headers, decision.headers)
  -- Envoy's metadata object is valid only until the next piece.
  local function set(name, value) handle:streamInfo():dynamicMetadata():set(USAGE, name, value) end
  if status >= 300 then
    pass_error(handle, set, status, rules)
  elseif encoded and encoded ~= "identity" then
    set("shape", "encoded")
  else
    if rules.redaction ~= "" then headers:remove("content-length") end
    pass_body(handle, set, kind, rules)
  end
end
