"""Streams as their callers asked for them: usage that only the gateway asked for is hidden from them.

Each stream is asked for its usage (B16), with each event where the upstream can. A caller that did not ask
must not see it: OpenAI's API sends no event without choices then, and many clients read `choices[0]` of each;
others add up the usage of all events. So Envoy takes out what is not for the caller, after it was read.

It is Lua, in Envoy, because an answer goes through Envoy alone. It decides nothing: which of HIDINGS a stream
gets is said with the decision, and a script that fails lets the stream pass as it is.
"""

from typing import Final

from farebox.gateway import extproc
from farebox.gateway.envoy_parts import FILTERS, Json, http_filter
from farebox.gateway.exchange import Hiding

NAME: Final = "envoy.filters.http.lua"

_SCRIPT: Final = """
-- Whole lines of a stream as its caller may see them, and whether the blank line that follows is to go too.
-- In JSON no text of the model can look like these names: its quotes are escaped. An event without choices is
-- the one that tells the usage of all.
function shown(text)
  local parts, from, line, stop = {}, 1, 1, 0
  local at = text:find('"usage"', 1, true)
  while at do
    while stop < at do
      line = stop + 1
      stop = text:find("\\n", line, true)
    end
    local on = at + 1
    local _, last = text:find('^"usage"%s*:%s*%b{}', at)
    if last and last < stop then
      local choices = text:find('"choices"', line, true)
      if choices and choices < stop and text:find('^"choices"%s*:%s*%[%s*%]', choices) then
        on = stop
        if not KEEPS_LAST then
          parts[#parts + 1] = text:sub(from, line - 1)
          local _, blank = text:find("^\\r?\\n", stop + 1)
          from = (blank or stop) + 1
          if from > #text then return table.concat(parts), not blank end
        end
      else
        parts[#parts + 1] = text:sub(from, at - 1)
        parts[#parts + 1] = '"usage":null'
        from, on = last + 1, last
      end
    end
    at = text:find('"usage"', on, true)
  end
  parts[#parts + 1] = text:sub(from)
  return table.concat(parts), false
end

function envoy_on_response(handle)
  local kind = handle:headers():get("content-type")
  if not kind or kind:sub(1, 17) ~= "text/event-stream" then return end
  handle:headers():remove("content-length")
  -- What came of a line that has no end yet. At the end of a stream it is no event, and is left out.
  local held, size, blank = {}, 0, false
  for chunk in handle:bodyChunks() do
    local bytes = chunk:getBytes(0, chunk:length())
    local whole = bytes:byte(-1) == 10 and #bytes or bytes:find("\\n[^\\n]*$") or 0
    if whole > 0 then
      held[#held + 1] = bytes:sub(1, whole)
      local text = table.concat(held)
      held, size = {bytes:sub(whole + 1)}, #bytes - whole
      if blank then text = text:gsub("^\\r?\\n", "") end
      text, blank = shown(text)
      chunk:setBytes(text)
    else
      held[#held + 1], size = bytes, size + #bytes
      if size > LONGEST then
        chunk:setBytes(table.concat(held))
        return
      end
      chunk:setBytes("")
    end
  end
end
"""
"""Written for LuaJIT in Envoy; `script` puts KEEPS_LAST and LONGEST before it."""
LONGEST: Final = 2**20
"""Bytes of a line that is waited for: a stream with a longer one is none of OpenAI's, and passes as it is."""


def script(hiding: Hiding) -> str:
    """What Envoy runs on a stream that gets this."""
    keeps_last = str(hiding is Hiding.EACH_EVENT).lower()
    return f"KEEPS_LAST, LONGEST = {keeps_last}, {LONGEST}\n{_SCRIPT}"


def hiding_filter() -> Json:
    """Before the filters that read the usage, so that it sees an answer after them."""
    codes = {each.value: {"inline_string": script(each)} for each in (Hiding.EACH_EVENT, Hiding.ALL)}
    return http_filter("lua", "lua.v3.Lua", {"source_codes": codes})


def hiding_of_route(hiding: Hiding) -> Json:
    """The configuration of a route whose streams get this."""
    return {NAME: {"@type": f"{FILTERS}lua.v3.LuaPerRoute", "name": hiding.value}}


def says(hiding: Hiding) -> Json:
    """The matcher of such a route."""
    return {"name": extproc.HIDING_HEADER, "string_match": {"exact": hiding.value}}
