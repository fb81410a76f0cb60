"""What Envoy does with an answer on its way: usage is kept for the log, and hidden where nobody asked for it.

Each stream is asked for its usage (B16), with each event where the upstream can. A caller that did not ask
must not see it: OpenAI's API sends no event without choices then, and many clients read `choices[0]` of each;
others add up the usage of all events.

It is a script in Envoy (`usage_filter.lua`), because an answer goes through Envoy alone. The script finds
usage and copies it as it is; `usage` says what it means. Which Hiding a stream gets is said with the
decision, and brings it to a route of its own.
"""

from importlib.resources import files
from typing import Final

from farebox.gateway.envoy import FILTERS, Json, http_filter
from farebox.gateway.ext_proc import messages
from farebox.gateway.interface import UsageRedaction

NAME: Final = "envoy.filters.http.lua"
NAMESPACE: Final = "farebox.usage"
"""The dynamic metadata in which the script leaves usage: "first" and "last", each a JSON object as text."""
REDACTION: Final = (UsageRedaction.EACH_EVENT, UsageRedaction.ALL)
_SCRIPT: Final = files("farebox.gateway.envoy").joinpath("usage_filter.lua").read_text(encoding="utf-8")


def script(redaction: UsageRedaction) -> str:
    """What Envoy runs on an answer that gets this."""
    return f'NAMESPACE, REDACTION = "{NAMESPACE}", "{redaction.value}"\n{_SCRIPT}'


def usage_filter() -> Json:
    """Nothing is hidden where the route does not say so."""
    scripts = {each.value: {"inline_string": script(each)} for each in REDACTION}
    default = {"inline_string": script(UsageRedaction.NOTHING)}
    return http_filter("lua", "lua.v3.Lua", {"default_source_code": default, "source_codes": scripts})


def redaction_of_route(redaction: UsageRedaction) -> Json:
    """The configuration of a route whose streams get this."""
    return {NAME: {"@type": f"{FILTERS}lua.v3.LuaPerRoute", "name": redaction.value}}


def says(redaction: UsageRedaction) -> Json:
    """The matcher of such a route."""
    return {"name": messages.HIDING_HEADER, "string_match": {"exact": redaction.value}}
