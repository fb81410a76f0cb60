-- Reads an answer as it passes, for response_filter.lua: its usage, its errors, and the text that no usage covers yet.
--
-- response_filter.py defines in front of it ANSWERS of metering/dialects.py: fields at the top level of an answer.

-- Whether usage has a number of tokens that is not 0. A provider that ends with zeros takes nothing back.
local function has_tokens(usage) return find(usage, '_tokens"%s*:%s*[1-9]') end

-- Whether a value, at its position, is anything but null or an empty list.
local function is_filled(text, value) return not match(text, "^null", value) and not match(text, "^%[%s*%]", value) end

-- The output tokens in usage: a number; MANY, if it has more digits than any real count, so that it stays a whole
-- number here; nil without one.
local MANY = 999999999
local function output_tokens(usage)
  local _, last = find(usage, 'completion_tokens"', 1, true)
  if not last then _, last = find(usage, 'output_tokens"', 1, true) end
  local at, sign = value_behind(usage, (last or #usage) + 1)
  if not at or not sign or sign < 48 or sign > 57 then return nil end
  local number, size = 0, 0
  while sign and sign >= 48 and sign <= 57 do
    number, size = number * 10 + sign - 48, size + 1
    if size > 9 then return MANY end
    at = at + 1
    sign = byte(usage, at)
  end
  if sign == 46 or sign == 69 or sign == 101 then
    number = tonumber(match(usage, "^[%d.eE+-]+", at - size)) or MANY
  end
  if number == 0 then
    -- Some count reasoning in the total alone.
    local total = tonumber(match(usage, '"total_tokens"%s*:%s*(%d+)'))
    local input = tonumber(match(usage, '"prompt_tokens"%s*:%s*(%d+)'))
    if total and input and total > input then number = total - input end
  end
  return number < MANY and number or MANY
end

-- The report for the access log. `set` stores a field of it. The client may leave at any time, so it is current after
-- each piece; the counts are updated when they grow by a sixteenth, because storing costs more than counting.
local function report(set, words, ceiling)
  local texts, reported, counted, output = nil, 0, false, 0
  -- `delivered`: whether there was text, or usage of a part of the answer.
  local self = { delivered = false }

  -- Counts the texts of events from `from` on; of a piece of a document, without `from`.
  function self.count(text, from)
    texts = texts or counter(words)
    if from then texts.event(text, from) else texts.piece(text) end
  end

  -- Stores the counts if they have changed enough.
  function self.store(always)
    local size = texts.size()
    if always or size > reported + reported / 16 then
      reported, counted, self.delivered = size, true, true
      set("content", texts.text())
    end
  end

  -- Stores usage; true if what was counted before is in it. Some report the input alone, some end with zeros, some report
  -- what cannot be: the text counts on.
  function self.usage(name, text)
    if #words > 0 then
      local tokens = output_tokens(text)
      if tokens and tokens > ceiling then
        set("impossible", "1")
        return false
      elseif not tokens or tokens == 0 then
        if output == 0 then set(tokens and name or "first", text) end
        return false
      end
      output = tokens
    end
    if name == "last" then self.delivered = true end
    set(name, text)
    if texts then texts.reset() end
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
local function sums(set, ceiling)
  local inputs, outputs, seen, input, output = {}, {}, 0, 0, 0
  return function(event, usage)
    local index = match(event, '"index"%s*:%s*(%d+)') or "0"
    local prompt = tonumber(match(usage, '"prompt_tokens"%s*:%s*(%d+)') or 0)
    local completion = output_tokens(usage) or 0
    if completion == 0 or completion > ceiling or prompt >= MANY then return end
    if not inputs[index] then
      seen = seen + 1
      inputs[index], outputs[index] = 0, 0
    end
    input, output = input + prompt - inputs[index], output + completion - outputs[index]
    inputs[index], outputs[index] = prompt, completion
    set("choices", seen .. " " .. input .. " " .. output)
  end
end

-- Whether a key has a string as its value, which is not empty, between two positions of a text.
local function has_string(text, word, from, stop)
  local at, behind = find_key(text, word, from)
  while at and at < stop do
    local value, first = value_behind(text, behind)
    if value and first == 34 and byte(text, value + 1) ~= 34 then return true end
    at, behind = find_key(text, word, behind)
  end
  return false
end

-- Whether the usage in an event, from `start` to `stop`, covers the whole stream, which ends with it.
local function is_final(dialect, text, start, stop, within)
  if dialect.final == "response" then return within == "response" end
  if within then return false end
  if dialect.final == "stop reason" then return has_string(text, 'stop_reason"', start, stop) end
  local at, behind = find_key(text, 'choices"', start)
  if not at or at > stop then return true end
  local value, first = value_behind(text, behind)
  if not value or first ~= 91 then return false end
  local _, sign = behind_space(text, value + 1)
  return sign == 93
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
local function events(set, rules)
  local dialect, choices, by_choice = rules.dialect, rules.choices, rules.by_choice
  local reports = report(set, dialect.text, rules.ceiling)
  local add_up = choices > 1 and sums(set, rules.ceiling)
  local begun, failed, usage = false, false, nil

  -- An error, after this text.
  local function fail(before)
    if failed then return end
    failed = true
    local delivered = reports.delivered
    if not delivered then
      local texts = counter(dialect.text)
      texts.event(before, 1)
      delivered = texts.size() > 0
    end
    set("failed", delivered and "1" or "0")
  end

  -- Takes usage from an event, from `start` to `stop`; true if it covers the text so far.
  local function take(text, start, stop, within, reported)
    if #reported > LONGEST_USAGE or not has_tokens(reported) then return false end
    if within == "message" then
      if begun then return true end
      begun = true
      return reports.usage("first", reported)
    end
    usage = nil
    if is_final(dialect, text, start, stop, within) then return reports.usage("final", reported) end
    if add_up and (by_choice or within == "choices") then
      add_up(sub(text, start, stop), reported)
      return reports.usage("last", reported)
    end
    local covers = reports.usage("last", reported)
    if covers then usage = reported end
    return covers
  end

  -- Reads usage from the event that contains the candidate at `spot`; returns the position behind it if it has any.
  local function read_event(text, spot)
    local start, stop = event_start(text, 1, spot), event_end(text, spot, false)
    local value = value_behind(text, spot + 7)
    local whole = match(text, "^%b{}()", value)
    -- Mostly, usage is the last field of the document: one brace follows, and the line's end.
    if whole and byte(text, whole) == 125 and byte(text, whole + 1) == 10 then
      return take(text, start, stop, nil, sub(text, value, whole - 1)) and stop + 1
    end
    local event, seen = sub(text, find(text, "{", start, true) or start, stop), false
    -- One event may have several lines of data.
    if find(event, "\ndata", 1, true) then event = gsub(event, "\ndata: ?", "\n") end
    document(function(name, within, read, place)
      if name == "usage" and take(event, 1, #event, within, match(read, "^%b{}", place)) then seen = true end
    end)(event)
    return seen and stop + 1
  end

  -- Reads usage; returns the position behind the last event with usage, from which text is counted.
  local function read_all_usage(text)
    -- The candidates for usage, each in an event of its own.
    local spots, at, behind = {}, find_key(text, 'usage"', 1)
    while at do
      local value, first = value_behind(text, behind)
      if value and first == 123 then
        spots[#spots + 1] = at
        behind = event_end(text, at, false) + 1
      end
      at, behind = find_key(text, 'usage"', behind)
    end
    local last = 1
    if add_up then
      for number = 1, #spots do last = read_event(text, spots[number]) or last end
      return last
    end
    local from = 1
    if dialect.final == "stop reason" and not begun and spots[1] then
      last, from = read_event(text, spots[1]) or last, 2
    end
    for number = #spots, from, -1 do
      local read = read_event(text, spots[number])
      if read then return read end
    end
    return last
  end

  -- Reads the candidates for errors: "error": anything but null, or "type": "error".
  local function read_errors(text)
    local at, behind = find_key(text, 'error"', 1)
    while at and not failed do
      local value, sign = value_behind(text, behind)
      if not value and sign or value and is_error(text, value) then
        -- An event may be full of candidates.
        local start = event_start(text, 1, at)
        behind = event_end(text, at, false) + 1
        document(function(name, within, event, place)
          if name == "error" and is_error(event, place)
            or name == "type" and not within and match(event, '^"error"', place) then
            fail(sub(text, 1, start - 1))
          end
        end)(sub(text, start, behind - 1))
      end
      at, behind = find_key(text, 'error"', behind)
    end
  end

  local self = {}

  function self.read(text)
    if find(text, "\r", 1, true) then text = gsub(text, "\r\n?", "\n") end
    local from = read_all_usage(text)
    read_errors(text)
    if from <= #text then
      reports.count(text, from)
      reports.store(false)
    end
    -- Usage in an event with text is final if nothing follows.
    if usage and (find(text, "[DONE]", 1, true) and match("\n" .. text, "\ndata: ?%[DONE%]")
      or choices == 1 and has_string(text, 'finish_reason"', 1, #text)) then
      set("final", usage)
      usage = nil
    end
  end

  -- A reader of an event that is too long to be buffered, called with each piece of it.
  function self.long()
    local covers = false
    local read = document(function(name, within, text, value)
      if name == "usage" then
        local reported = match(text, "^%b{}", value)
        if not has_tokens(reported) then return end
        local final = dialect.final == "response" and within == "response"
        covers = reports.usage(final and "final" or "last", reported)
        usage = covers and not final and reported or nil
      elseif name == "error" and is_error(text, value) then
        fail("")
      end
    end)
    return function(text)
      read(text)
      if covers then return end
      reports.count(text)
      reports.store(false)
    end
  end

  return self
end

-- A reader of an answer in one document, called with each piece of it.
local function answer(set, rules)
  local reports = report(set, rules.dialect.document_text, rules.ceiling)
  local reported, answers, failed = false, false, false
  local read = document(function(name, within, text, value)
    if name == "usage" then
      local usage = match(text, "^%b{}", value)
      if has_tokens(usage) then reported = reports.usage("final", usage) or reported end
    elseif name == "error" and within == "choices" then
      if is_error(text, value) then set("failed", "1") end
    elseif name == "error" and not within and is_error(text, value)
      or (name == "type" or name == "object") and not within and match(text, '^"error"', value) then
      -- Nothing was delivered, whatever usage it reports.
      if not failed then set("shape", "other") end
      failed = true
    elseif ANSWERS[name] then
      answers = answers or is_filled(text, value)
    end
  end)
  return function(text)
    read(text)
    if failed then return end
    if not reported then
      reports.count(text)
      if answers then reports.store(true) end
    end
  end
end
