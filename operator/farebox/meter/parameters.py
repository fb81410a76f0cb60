"""Parameters of the meter's reports, read from a request's query. Every fault is an ApiError 400."""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from aiohttp import web

from farebox.clock import from_micros, utc_now
from farebox.domain.keys import ObjectKey
from farebox.ledger.engine import Ledger
from farebox.meter.auth import Permission
from farebox.meter.requests import ApiError, authorized, bearer_token
from farebox.meterapi.scalars import parse_key, parse_time

MAX_DAYS: Final = 90
"""The longest period of a report of usage or calls."""
MAX_SERVICES: Final = 100
"""The limit of services that one request names."""
BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
_END: Final = datetime(9999, 12, 1, tzinfo=UTC)
"""The beginning of the last month that ends within the calendar."""
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def invalid(message: str) -> ApiError:
    """The answer to a parameter that cannot be used."""
    return ApiError(400, "InvalidParameter", message)


def check_names(request: web.Request, known: Collection[str]) -> None:
    """Refuse unknown parameters: a misspelt one must not be ignored."""
    for name in request.query:
        if name not in known:
            raise invalid(f"{name[:64]} is not a parameter of this call: use {', '.join(known)}")
        if len(request.query.getall(name)) > 1:
            raise invalid(f"{name} is given more than once: give it once")


async def authorized_owner(request: web.Request) -> tuple[Ledger, ObjectKey | str]:
    """The ledger, and the account or the namespace that the caller may read (docs/meter-api.md).

    Raises:
        ApiError: 400 without exactly one of `account` and `namespace`; otherwise as `authorized`.
    """
    # The parameters decide which right is needed; a caller without a token gets 401 before their errors.
    bearer_token(request)
    owner = _owner(request)
    if isinstance(owner, ObjectKey):
        permission = Permission("get", "billingaccounts", owner.namespace)
    else:
        permission = Permission("get", "inferenceservices", owner)
    return await authorized(request, permission), owner


def _owner(request: web.Request) -> ObjectKey | str:
    account, namespace = request.query.get("account"), request.query.get("namespace")
    if (account is None) == (namespace is None):
        raise invalid("give either account=namespace/name, for what it pays, or namespace, for its services")
    if account is not None:
        return _key("account", account)
    return namespace_of(request)


def namespace_of(request: web.Request) -> str:
    """The parameter `namespace`."""
    namespace = request.query["namespace"]
    if _NAMESPACE.fullmatch(namespace) is None:
        raise invalid("namespace must be the name of a namespace, such as team-a")
    return namespace


def services_of(request: web.Request, owner: ObjectKey | str) -> frozenset[ObjectKey] | None:
    """The services that `service` names, with commas between them; None without the parameter."""
    if "service" not in request.query:
        return None
    services = frozenset(_key("service", text) for text in request.query["service"].split(","))
    if len(services) > MAX_SERVICES:
        raise invalid(f"service names more than {MAX_SERVICES} services: send several requests")
    for service in sorted(services):
        if isinstance(owner, str) and service.namespace != owner:
            raise invalid(f"service {service} is not in namespace {owner}: give its own namespace")
    return services


def _key(name: str, text: str) -> ObjectKey:
    try:
        key = parse_key(text)
    except ValueError as error:
        raise invalid(f"{name} must be namespace/name: {error}") from error
    if _NAMESPACE.fullmatch(key.namespace) is None:
        raise invalid(f"{name} must be namespace/name, with the name of a namespace")
    return key


def one_of(request: web.Request, name: str, words: Collection[str], default: str) -> str:
    """A parameter with one of these words."""
    word = request.query.get(name, default)
    if word not in words:
        raise invalid(f"{name} must be one of {', '.join(words)}")
    return word


def text_of(request: web.Request, name: str) -> str | None:
    """A parameter with a name, such as one of a model; None without it."""
    text = request.query.get(name)
    if text is not None and not (0 < len(text) <= 253 and text.isprintable()):
        raise invalid(f"{name} must have 1 to 253 printable characters")
    return text


def period_of(request: web.Request, days: int) -> tuple[datetime, datetime]:
    """The times `from` and `to` (default: now), at most `days` apart."""
    if "from" not in request.query:
        raise invalid("from is missing: give an RFC 3339 time, such as 2026-01-31T00:00:00Z")
    start = time_of(request, "from")
    end = time_of(request, "to") if "to" in request.query else utc_now()
    check_period(start, end, days)
    return start, end


def time_of(request: web.Request, name: str) -> datetime:
    """A parameter with an RFC 3339 time."""
    # A plus in a query is decoded to a space, and no offset begins with a space.
    text = re.sub(r" (?=\d\d:\d\d$)", "+", request.query[name])
    try:
        return parse_time(text)
    except ValueError as error:
        raise invalid(f"{name} cannot be read: {error}") from error


def check_period(start: datetime, end: datetime, days: int) -> None:
    """Refuse a period that no report can have."""
    if start < BEGINNING:
        raise invalid("from must not be before 1970")
    if end > _END:
        raise invalid("to must not be after November of 9999")
    if end <= start:
        raise invalid("to must be after from (without to: now)")
    if end - start > timedelta(days=days):
        raise invalid(f"from and to must be at most {days} days apart: send several requests")


def fingerprint(*parts: object) -> str:
    """A fingerprint of a query: a cursor is valid for its report alone."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def encode_cursor(content: Sequence[int | str]) -> str:
    """Encode where the next page begins. It contains no secret and grants no right."""
    return base64.urlsafe_b64encode(json.dumps(content, separators=(",", ":")).encode()).decode().rstrip("=")


def decode_cursor(request: web.Request, types: Sequence[type]) -> list[Any]:
    """The content of the parameter `cursor`, with values of these types."""
    text = request.query["cursor"]
    try:
        content: Any = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, binascii.Error, RecursionError) as error:
        raise invalid_cursor() from error
    if not isinstance(content, list) or [type(item) for item in content] != list(types):
        raise invalid_cursor()
    if not all(map(_is_storable, content)):
        raise invalid_cursor()
    return content


def cursor_times(request: web.Request, start: int, end: int) -> tuple[datetime, datetime]:
    """The times of a cursor's report, in microseconds; `from` and `to` may repeat them."""
    try:
        times = from_micros(start), from_micros(end)
    except OverflowError as error:
        raise invalid_cursor() from error
    for name, moment in zip(("from", "to"), times, strict=True):
        if name in request.query and time_of(request, name) != moment:
            raise invalid_cursor()
    check_period(*times, MAX_DAYS)
    return times


def invalid_cursor() -> ApiError:
    """The answer to a cursor of another report, or one that no page had."""
    return invalid("cursor must be `next` of the page before, with the same parameters")


def _is_storable(value: int | str) -> bool:
    """Whether a value of a cursor can be used in a query. A page never has others."""
    return value.isprintable() if isinstance(value, str) else 0 <= value < 2**62
