-- Reads an answer as it passes, for response_filter.lua: its usage, its errors, and the text that no usage covers yet.
--
-- response_filter.py defines in front of it: WEIGHTS of domain/billing/estimates.py, and the tables of
-- metering/dialects.py: WITHIN (objects at the top level of a document that may have the usage or the error of the
-- answer) and ANSWERS (fields at the top level of an answer).
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

-- Counting text.

-- The class of a byte of text: the first byte of a character decides about it. 0: a byte within a character.
local LETTER, DIGIT, MARK, SPACE, BREAK, OTHER_LETTER, IDEOGRAPH, SYMBOL = 1, 2, 3, 4, 5, 6, 7, 8
local CLASSES = {}
for sign = 0, 255 do
  local class = MARK
  if sign >= 240 then class = SYMBOL
  elseif sign >= 227 then class = IDEOGRAPH
  elseif sign >= 192 then class = OTHER_LETTER
  elseif sign >= 128 then class = 0
  elseif sign == 32 then class = SPACE
  elseif sign < 32 then class = BREAK
  elseif sign >= 48 and sign <= 57 then class = DIGIT
  elseif sign >= 97 and sign <= 122 or sign >= 65 and sign <= 90 then class = LETTER
  end
  CLASSES[sign] = class
end
-- The class of a character that is escaped as \uXXXX, by its first digit; a surrogate pair is two characters.
local function class_of_escape(digit)
  if digit >= 48 and digit <= 50 then return OTHER_LETTER end
  return IDEOGRAPH
end

-- A counter of texts: the number of pieces of text, their likely tokens in thousandths, by WEIGHTS, and the number of
-- images. A word continues in the next piece.
local function counter(words)
  local pieces, tokens, before, length, images = 0, 0, 0, 0, 0
  -- Of a document that arrives in pieces: whether a string has begun, where the last one ends, whether there are parts,
  -- and what is read again with the next piece.
  local inside, counted, in_parts, rest = false, 0, false, ""
  local self = {}
  local word, part, number, gap, mark = WEIGHTS.word, WEIGHTS.part, WEIGHTS.number, WEIGHTS.gap, WEIGHTS.mark
  local blank, letter, ideograph, symbol = WEIGHTS.blank, WEIGHTS.letter, WEIGHTS.ideograph, WEIGHTS.symbol

  local function add_character(class)
    local kind = class == OTHER_LETTER and LETTER or class
    length = kind == before and length + 1 or 1
    if kind == LETTER then
      if length == 1 then
        tokens = tokens + word
      elseif length % 5 == 2 and length > 2 then
        tokens = tokens + part
      end
      if class == OTHER_LETTER then tokens = tokens + letter end
    elseif kind == DIGIT then
      if length % 3 == 1 then tokens = tokens + number end
      if length == 1 and before == SPACE then tokens = tokens + gap end
    elseif kind == MARK then
      if length % 2 == 1 then tokens = tokens + mark end
    elseif kind == SPACE then
      if length == 2 then tokens = tokens + blank end
    elseif kind == BREAK then
      if length == 1 then tokens = tokens + blank end
    elseif kind == IDEOGRAPH then
      tokens = tokens + ideograph
    else
      tokens = tokens + symbol
    end
    before = kind
  end

  -- Counts the string from `from` to before `stop`.
  local function add(text, from, stop)
    if stop <= from then return end
    pieces = pieces + 1
    local at = from
    while at < stop do
      local sign = byte(text, at)
      at = at + 1
      if sign == 92 and at < stop then
        local escape = byte(text, at)
        at = at + 1
        if escape == 117 then
          add_character(class_of_escape(byte(text, at) or 48))
          at = at + 4
        else
          -- A quote, a slash or a backslash; other letters stand for white space.
          add_character(CLASSES[escape] == LETTER and BREAK or MARK)
        end
      else
        local class = CLASSES[sign]
        if class > 0 then add_character(class) end
      end
    end
  end

  local function count_field(text, word, from)
    local found, arrays = false, false
    local at, behind = find_key(text, word, from)
    while at do
      local value, first = value_behind(text, behind)
      if value and first == 34 then
        local stop, on = closing(text, value + 1)
        add(text, value + 1, stop or on)
        found = true
        counted = stop or #text
        if not stop then
          inside, rest = true, sub(text, on)
          return found, arrays
        end
        behind = stop + 1
      elseif first == 91 then
        arrays = true
      end
      at, behind = find_key(text, word, behind)
    end
    return found, arrays
  end

  -- Counts the texts from `from` on.
  function self.count(text, from)
    local image = find(text, ";base64,", from, true)
    while image do
      images, counted = images + 1, image + 7
      image = find(text, ";base64,", counted + 1, true)
    end
    if inside then
      local stop, on = closing(text, from)
      add(text, from, stop or on)
      if not stop then
        rest = sub(text, on)
        return
      end
      inside, from, counted = false, stop + 1, stop
    end
    local skip
    for number = 1, #words do
      local word = words[number]
      if word ~= skip then
        local found, arrays = count_field(text, word, from)
        -- Some servers send the same text under both names, during a change from one to the other.
        if found and word == 'reasoning_content"' then skip = 'reasoning"' end
        if word == 'content"' then
          -- Text may be in parts: {"content": [{"type": "text", "text": ...}]}.
          if arrays and not find(text, '"logprobs"', from, true) then in_parts = true end
          if in_parts then count_field(text, 'text"', from) end
        elseif found and word == 'arguments"' then
          -- A model writes the name of a function, too.
          count_field(text, 'name"', from)
        end
      end
    end
  end

  -- Counts the texts of an event.
  function self.event(text, from)
    in_parts = false
    self.count(text, from)
    inside = false
  end

  -- Counts the texts of a document that arrives in pieces. A key that is cut is read with the next piece.
  function self.piece(text)
    if rest ~= "" then text, rest = rest .. text, "" end
    counted = 0
    self.count(text, 1)
    if not inside then rest = sub(text, math.max(counted + 1, #text - LONGEST_KEY)) end
  end

  function self.reset() pieces, tokens, images = 0, 0, 0 end
  function self.size() return tokens + 1000 * images end
  function self.text() return pieces .. " " .. tokens .. " " .. images end
  return self
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
