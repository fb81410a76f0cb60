-- Runs in Envoy (LuaJIT) on each answer of an upstream, behind usage_reader.lua:
--   * it removes the headers that are not allowed, and adds those of the decision;
--   * it replaces errors that are not about the caller's request;
--   * it reports the usage, and the text that no usage covers, in the metadata that the access log writes;
--   * it removes from a stream the usage that its caller did not ask for.
-- It does not interpret usage, and no price depends on it alone: metering/usage.py decides what a call pays. If the
-- script fails, the rest of the answer passes unchanged, and its call is charged by what is known.
--
-- response_filter.py defines in front of it: RULES, USAGE and LOCAL_REPLY, names; ALLOWED, the headers that pass;
-- ERRORS, the texts of replaced errors; and DIALECTS of metering/dialects.py.

-- Removing usage.

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
    local on = at + 1
    local _, last = find(text, '^"usage"%s*:%s*%b{}', at)
    if last and last < stop then
      local choices = find_key(text, 'choices"', start)
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
