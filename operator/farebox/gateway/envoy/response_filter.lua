-- Runs in Envoy (LuaJIT) on each answer of an upstream, behind json_reader.lua, text_counter.lua and usage_reader.lua:
--   * it removes the headers that are not allowed, and adds those of the decision;
--   * it replaces errors that are not about the caller's request;
--   * it reports the usage, and the text that no usage covers, in the metadata that the access log writes;
--   * it removes from a stream the usage that its caller did not ask for.
-- It does not interpret usage, and no price depends on it alone: metering/usage.py decides what a call pays. If the
-- script fails, the rest of the answer passes unchanged, and its call is charged by what is known.
--
-- response_filter.py defines in front of it: RULES, USAGE and LOCAL_REPLY, names; ALLOWED, the headers that pass;
-- ERRORS, the texts of replaced errors; KEYS, the beginnings of keys; and DIALECTS of metering/dialects.py.

-- Removing usage.

-- Whether an event, from `start` to `stop`, has an error.
local function has_error(text, start, stop)
  local at, behind = find_key(text, 'error"', start)
  local value = at and at < stop and value_behind(text, behind)
  return value and is_error(text, value)
end

-- Complete events of a stream without redacted usage. In the event without choices, which has the usage of the whole
-- stream, the caller asked for neither.
local function redacted(text, redaction)
  local has_cr = find(text, "\r", 1, true)
  local parts, from, start, stop = {}, 1, 1, 0
  local at = find_key(text, 'usage"', 1)
  while at do
    while stop < at do
      start = stop + 1
      stop = event_end(text, start, has_cr)
    end
    local on = at + #'"usage"'
    local _, last = find(text, '^"usage"%s*:%s*%b{}', at)
    if last and last < stop then
      local choices = find_key(text, 'choices"', start)
      if choices and choices < stop and find(text, '^"choices"%s*:%s*%[%s*%]', choices)
        and not has_error(text, start, stop) then
        on = stop
        if redaction == "all" then
          -- The second byte of the line end before it may have come late.
          parts[#parts + 1] = sub(text, from, match(text, "^[\r\n]*()", start) - 1)
          from = stop + 1
        end
      else
        parts[#parts + 1] = sub(text, from, at - 1)
        parts[#parts + 1] = '"usage":null'
        from, on = last + 1, last
      end
    end
    at = find_key(text, 'usage"', on)
  end
  parts[#parts + 1] = sub(text, from)
  return concat(parts)
end

-- Answers.

-- The shape of an answer by its first bytes: "document", "events" or "other"; nil without any. The type that
-- the upstream gives is not reliable: some send errors typed as streams, or JSON typed as text.
local function shape_of(kind, text)
  local at, sign = behind_space(text, 1)
  -- The bytes of a byte order mark.
  while sign == 239 or sign == 187 or sign == 191 do at, sign = behind_space(text, at + 1) end
  if not sign then return nil end
  if sign == 123 or sign == 91 then return "document" end
  if sign == 60 then return "other" end
  if find(kind, "event-stream", 1, true) then return "events" end
  -- The first letters of data, event, id, retry, and a comment.
  if sign == 100 or sign == 101 or sign == 105 or sign == 114 or sign == 58 then return "events" end
  return "other"
end

-- The position behind the empty lines and comments with which a text begins. Servers send them to keep a connection.
local function behind_heartbeats(text)
  local at = 1
  while true do
    local sign = byte(text, at)
    if sign == 58 then
      local stop = find(text, "[\r\n]", at)
      if not stop then return at end
      at = stop
    elseif sign ~= 10 and sign ~= 13 then
      return at
    end
    at = at + 1
  end
end

-- Passes a stream through the reader, and its usage through the redaction. What is not yet a complete event is held
-- back, if usage may have to be removed from it, and passes at the end of the stream.
local function stream(set, rules)
  local reader = events(set, rules)
  local redaction = rules.redaction
  -- The pieces of an event that is not complete, and their size; the reader of a long event, and its last bytes.
  local held, size, long, tail = {}, 0, nil, ""

  -- Takes a piece of a long event; gives what passes, and the piece behind the event, if it has ended.
  local function long_piece(bytes)
    local text = tail .. bytes
    local stop = event_end(text, 1, find(text, "\r", 1, true)) - #tail
    if stop < 1 or last_event_end(sub(text, 1, stop + #tail), stop + #tail) ~= stop + #tail then
      tail = sub(text, -3)
      long(bytes)
      return bytes
    end
    long(sub(bytes, 1, stop))
    long = nil
    return sub(bytes, 1, stop), sub(bytes, stop + 1)
  end

  -- The bytes to send for a piece.
  local function piece(bytes)
    local passed = ""
    if long then
      local passes, more = long_piece(bytes)
      if not more then return bytes end
      passed, bytes = passes, more
    end
    held[#held + 1], size = bytes, size + #bytes
    local stop, text = 0, bytes
    if #held == 1 then
      stop = last_event_end(text, 2)
    elseif find(bytes, "[\r\n]") then
      text = concat(held)
      held = { text }
      stop = last_event_end(text, #text - #bytes + 1)
    end
    local out = redaction == "" and bytes or ""
    if stop > 0 then
      local whole = stop == #text and text or sub(text, 1, stop)
      held, size = { stop < #text and sub(text, stop + 1) or nil }, #text - stop
      reader.read(whole)
      if redaction ~= "" then out = redacted(whole, redaction) end
    end
    if size > 0 and redaction ~= "" and #held == 1 then
      local start = behind_heartbeats(held[1])
      if start > 1 then
        out = out .. sub(held[1], 1, start - 1)
        held, size = { start <= size and sub(held[1], start) or nil }, size - start + 1
      end
    end
    if size > LONGEST_EVENT then
      text = concat(held)
      long, tail = reader.long(), sub(text, -3)
      long(text)
      held, size = {}, 0
      if redaction ~= "" then out = out .. text end
    end
    return passed == "" and out or passed .. out
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
        read = answer(set, rules)
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

-- A text without what may be a part of a key, or the name of an organization. Names of models have parts of letters and
-- digits, too, but shorter ones.
local function masked(text)
  text = gsub(text, "([Bb][Ee][Aa][Rr][Ee][Rr] +)[%w_%-%.~+/=]+", "%1***")
  return (gsub(text, "[%w_%-%*]+", function(word)
    if #word < 4 then return nil end
    if find(word, "*", 1, true) or KEYS[match(word, "^%a+[%-_]") or ""] or find(word, "^AIza") or find(word, "^eyJ")
      or find(word, "^%x%x%x%x%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-") then return "***" end
    for part in string.gmatch(word, "%w+") do
      if #part >= 20 or #part >= 12 and find(part, "%d") and find(part, "%l") and find(part, "%u") then return "***" end
    end
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
  local headers = handle:headers()
  local size, text = body:length(), ""
  -- What is compressed here cannot be read.
  if not headers:get("content-encoding") then
    text = masked(body:getBytes(0, math.min(size, LONGEST_ERROR)))
    set("error", sub(text, 1, 512))
  end
  local name = replaced_by(status, text)
  if not name and (text == "" or size > LONGEST_ERROR or find(text, "^%s*<")) then name = "rejected" end
  if not name then
    body:setBytes(text)
    return
  end
  local error = ERRORS[name]
  body:setBytes((gsub(error[rules.name] or error.other, "REQUEST_ID", rules.request_id)))
  headers:remove("content-encoding")
  headers:replace("content-type", "application/json")
  if error.status > 0 then headers:replace(":status", tostring(error.status)) end
end

-- The rules of the decision: "DIALECT REDACTION CHOICES BY_CHOICE CEILING REQUEST_ID".
local function read_rules(text)
  local dialect, redaction, choices, by_choice, ceiling, request_id = match(text, "^(%S*) (%S*) (%d+) (%d) (%d+) (.*)")
  return {
    name = dialect,
    dialect = DIALECTS[dialect] or NO_DIALECT,
    redaction = redaction,
    choices = tonumber(choices),
    by_choice = by_choice == "1",
    ceiling = tonumber(ceiling),
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
