"""Envoy's filter of answers: it copies usage into the log, and removes usage that the caller did not ask for.

The gateway asks every stream for its usage (B16), in every event if the upstream supports it. A caller that
did not ask must not see it: many clients read `choices[0]` of every event, which a usage event does not have,
and others add up the usage of all events.

The filter is a script in Envoy (`usage_filter.lua`), because answers pass through Envoy only. The script
copies usage verbatim; `metering.usage` interprets it. The decision names a UsageRedaction, which selects a
route.
"""

from importlib.resources import files
from typing import Final

from farebox.gateway.envoy import FILTERS, Json, http_filter
from farebox.gateway.ext_proc import messages
from farebox.gateway.interface import UsageRedaction

NAME: Final = "envoy.filters.http.lua"
NAMESPACE: Final = "farebox.usage"
"""The dynamic metadata of the script: "first" and "last" usage, each a JSON object as text."""
REDACTIONS: Final = (UsageRedaction.EACH_EVENT, UsageRedaction.ALL)
_SCRIPT: Final = files("farebox.gateway.envoy").joinpath("usage_filter.lua").read_text(encoding="utf-8")


def script(redaction: UsageRedaction) -> str:
    """The script for answers with this redaction."""
    return f'NAMESPACE, REDACTION = "{NAMESPACE}", "{redaction.value}"\n{_SCRIPT}'


def usage_filter() -> Json:
    """The filter; it redacts nothing unless the route says so."""
    scripts = {each.value: {"inline_string": script(each)} for each in REDACTIONS}
    default = {"inline_string": script(UsageRedaction.NOTHING)}
    return http_filter("lua", "lua.v3.Lua", {"default_source_code": default, "source_codes": scripts})


def redaction_of_route(redaction: UsageRedaction) -> Json:
    """The filter's configuration on a route with this redaction."""
    return {NAME: {"@type": f"{FILTERS}lua.v3.LuaPerRoute", "name": redaction.value}}


def redaction_matcher(redaction: UsageRedaction) -> Json:
    """The header matcher of a route with this redaction."""
    return {"name": messages.REDACTION_HEADER, "string_match": {"exact": redaction.value}}
