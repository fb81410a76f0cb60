"""The parameters of look-ups, and what they ask of the meter. Pure; every fault is a Denied with 400.

The meter is always asked about the namespace of the key, and about its services if the key is bound to some.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import parse_qsl

from farebox.domain.admission.types import Denied, KeyPolicy
from farebox.domain.keys import ObjectKey
from farebox.meterapi.reports import Bucket, Group
from farebox.meterapi.scalars import parse_time

GROUPS: Final[Mapping[str, Group]] = {"model": Group.MODEL, "key": Group.API_KEY, "service": Group.SERVICE}
"""What usage can be grouped by beside "day"."""
USAGE_ROWS: Final = 500
CALLS: Final = 100
_MAX_SERVICES: Final = 100
"""The limit of services in one question to the meter."""
_DEFAULT_PERIOD: Final = timedelta(days=30)
_PERIOD: Final = ("from", "to", "cursor")
_USAGE: Final = ("group_by", "service", "model", "key", *_PERIOD)
_CALLS: Final = ("service", "model", "key", "status", "estimated", "limit", *_PERIOD)


def usage_query(query: str, key: KeyPolicy, now: datetime) -> dict[str, str]:
    """The meter's parameters for GET /v1/usage."""
    given = _parameters(query, _USAGE)
    groups = [name for name in given.get("group_by", "").split(",") if name]
    for name in groups:
        if name != "day" and name not in GROUPS:
            raise invalid(f"group_by must be any of day, {', '.join(GROUPS)}, with commas between them")
    asked = _filters(given, key, now) | {"limit": str(USAGE_ROWS)}
    if "day" in groups:
        asked["bucket"] = Bucket.DAY
    if any(name in GROUPS for name in groups):
        asked["groupBy"] = ",".join(GROUPS[name] for name in groups if name in GROUPS)
    return asked


def calls_query(query: str, key: KeyPolicy, now: datetime) -> dict[str, str]:
    """The meter's parameters for GET /v1/calls."""
    given = _parameters(query, _CALLS)
    limit = given.get("limit", str(CALLS))
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= CALLS):
        raise invalid(f"limit must be an integer from 1 to {CALLS}")
    same = {name: given[name] for name in ("status", "estimated") if name in given}
    return _filters(given, key, now) | same | {"limit": limit}


def no_parameters(query: str) -> None:
    """Refuse any parameter: a filter must not be ignored."""
    _parameters(query, ())


def may_see(key: KeyPolicy, service: ObjectKey) -> bool:
    """Whether a key may look up the calls of a service."""
    return service.namespace == key.key.namespace and (key.services is None or service.name in key.services)


def invalid(message: str) -> Denied:
    """The denial of a parameter."""
    return Denied(400, "invalid_parameter", message)


def _parameters(query: str, known: Sequence[str]) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=2 * len(_CALLS))
    except ValueError:
        raise invalid("The query has too many parameters") from None
    given: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            use = f"use {', '.join(known)}" if known else "it takes no parameters"
            raise invalid(f"{name[:64]!r} is not a parameter of this path: {use}")
        if name in given:
            raise invalid(f"{name} is given more than once")
        given[name] = value
    return given


def _filters(given: Mapping[str, str], key: KeyPolicy, now: datetime) -> dict[str, str]:
    """Whose calls, and of which time. A cursor brings its own time with it."""
    namespace = key.key.namespace
    asked = {"namespace": namespace}
    services = _services(given, key)
    if services is not None:
        asked["service"] = ",".join(f"{namespace}/{name}" for name in services)
    for name, theirs in (("model", "model"), ("key", "apiKey"), ("cursor", "cursor")):
        if name in given:
            asked[theirs] = given[name]
    end = _time(given, "to", now)
    start = _time(given, "from", end - _DEFAULT_PERIOD)
    if "cursor" not in given or "from" in given:
        asked["from"] = start.isoformat()
    if "cursor" not in given or "to" in given:
        asked["to"] = end.isoformat()
    return asked


def _services(given: Mapping[str, str], key: KeyPolicy) -> list[str] | None:
    """The services to ask about; None: all of the namespace."""
    if "service" in given:
        names = sorted(set(given["service"].split(",")))
        for name in names:
            if not may_see(key, ObjectKey(key.key.namespace, name)):
                raise Denied(
                    403, "service_not_allowed", f"API key {key.key.name} may not call model {name[:253]!r}"
                )
    elif key.services is None:
        return None
    else:
        names = sorted(key.services)
    if len(names) > _MAX_SERVICES:
        raise invalid(f"service must name at most {_MAX_SERVICES} services, with commas between them")
    return names


def _time(given: Mapping[str, str], name: str, default: datetime) -> datetime:
    """A date, which begins at midnight UTC, or an RFC 3339 time."""
    text = given.get(name)
    if text is None:
        return default
    # A plus in a query is decoded to a space.
    text = text.replace(" ", "+")
    try:
        return parse_time(f"{text}T00:00:00Z" if len(text) == 10 else text)
    except ValueError:
        raise invalid(f"{name} must be a date, such as 2026-01-31, or an RFC 3339 time") from None
