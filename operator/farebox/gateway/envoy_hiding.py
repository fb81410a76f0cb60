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

SCRIPT: Final = """
-- A line of a stream as its caller may see it, or nil. In JSON no text of the model can look like these
-- patterns: its quotes are escaped. An event without choices is the one that tells the usage of all.
function shown(line)
  if not line:find('"usage"%s*:%s*{') then return line end
  if not line:find('"choices"%s*:%s*%[%s*%]') then
    return (line:gsub('"usage"%s*:%s*%b{}', '"usage":null'))
  end
  if KEEPS_LAST then return line end
end

function envoy_on_response(handle)
  local kind = handle:headers():get("content-type")
  if not kind or kind:sub(1, 17) ~= "text/event-stream" then return end
  handle:headers():remove("content-length")
  -- What came of a line that has no end yet. At the end of a stream it is no event, and is left out.
  local rest, hidden = "", false
  for chunk in handle:bodyChunks() do
    local text = rest .. chunk:getBytes(0, chunk:length())
    local lines, from = {}, 1
    local to = text:find("\\n", from, true)
    while to do
      local line = text:sub(from, to)
      if not (hidden and (line == "\\n" or line == "\\r\\n")) then
        line = shown(line)
        hidden = line == nil
        lines[#lines + 1] = line
      end
      from = to + 1
      to = text:find("\\n", from, true)
    end
    rest = text:sub(from)
    chunk:setBytes(table.concat(lines))
  end
end
"""
"""Written for LuaJIT in Envoy; `KEEPS_LAST` is said before it."""


def hiding_filter() -> Json:
    """Before the filters that read the usage, so that it sees an answer after them."""
    codes = {
        hiding.value: {"inline_string": f"KEEPS_LAST = {str(hiding is Hiding.EACH_EVENT).lower()}\n{SCRIPT}"}
        for hiding in (Hiding.EACH_EVENT, Hiding.ALL)
    }
    return http_filter("lua", "lua.v3.Lua", {"source_codes": codes})


def hiding_of_route(hiding: Hiding) -> Json:
    """The configuration of a route whose streams get this."""
    return {NAME: {"@type": f"{FILTERS}lua.v3.LuaPerRoute", "name": hiding.value}}


def says(hiding: Hiding) -> Json:
    """The matcher of such a route."""
    return {"name": extproc.HIDING_HEADER, "string_match": {"exact": hiding.value}}
