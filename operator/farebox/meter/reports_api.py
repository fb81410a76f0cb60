"""The routes that report usage and postings: GET /v1/usage and statements.

Authorization comes first: an account's money needs the right to its BillingAccount, a namespace's usage needs
the right to its InferenceServices (docs/meter-api.md).
"""

import asyncio
import base64
import binascii
import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from aiohttp import web

from farebox.clock import from_micros, to_micros, utc_now
from farebox.domain.keys import ObjectKey
from farebox.ledger.reports.statement import read_statement
from farebox.ledger.reports.usage import AsOf, Place, UsagePage, read_usage
from farebox.meter.auth import Permission
from farebox.meter.requests import (
    ApiError,
    account_of_path,
    authorized,
    bearer_token,
    found,
    integer,
    json_response,
)
from farebox.meterapi.csv import statement_csv
from farebox.meterapi.reports import Bucket, Group, Statement, UsageQuery, UsageReport
from farebox.meterapi.scalars import parse_key, parse_time

MAX_USAGE_DAYS: Final = 90
MAX_STATEMENT_DAYS: Final = 366
MAX_ROWS: Final = 5_000
"""The limit of rows in a page of usage."""

_USAGE: Final = (
    *("account", "namespace", "service", "model", "apiKey"),
    *("groupBy", "bucket", "from", "to", "limit", "cursor"),
)
_STATEMENT: Final = ("from", "to", "format")
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
_END: Final = datetime(9999, 12, 1, tzinfo=UTC)
"""The beginning of the last month that ends within the calendar."""


async def get_usage(request: web.Request) -> web.Response:
    """Sum the usage of an account or a namespace (B19)."""
    # The parameters decide which right is needed; a caller without a token gets 401 before their errors.
    bearer_token(request)
    owner = _owner(request)
    if isinstance(owner, ObjectKey):
        permission = Permission("get", "billingaccounts", owner.namespace)
    else:
        permission = Permission("get", "inferenceservices", owner)
    ledger = await authorized(request, permission)
    _check_names(request, _USAGE)
    limit = integer(request, "limit", 1000, at_least=1, at_most=MAX_ROWS)
    query = _filters(request, owner)
    place: Place | None = None
    as_of: AsOf | None = None
    if "cursor" in request.query:
        query, as_of, place = _continued(request, query)
    else:
        start, end = _period(request, MAX_USAGE_DAYS)
        query = replace(query, start=start, end=end)
    page = await ledger.report(lambda connection: read_usage(connection, query, limit, place, as_of))
    cursor = None if page.next is None else _cursor(query, page.as_of, page.next)
    return await asyncio.to_thread(json_response, _report(query, page, cursor))


def _report(query: UsageQuery, page: UsagePage, cursor: str | None) -> UsageReport:
    return UsageReport(
        start=query.start,
        end=query.end,
        bucket=query.bucket,
        group_by=tuple(group for group in Group if group in query.group_by),
        as_of=page.as_of.sequence,
        pending=page.pending,
        rows=tuple(page.rows),
        next=cursor,
    )


async def get_statement(request: web.Request) -> web.Response:
    """Read the statement of an account."""
    ledger = await authorized(request, Permission("get", "billingaccounts", request.match_info["namespace"]))
    _check_names(request, _STATEMENT)
    account = account_of_path(request)
    start, end = _period(request, MAX_STATEMENT_DAYS)
    form = _one_of(request, "format", ("json", "csv"), "json")
    read = await ledger.report(lambda connection: read_statement(connection, account, start, end))
    statement = found(account, read)
    if form == "csv":
        return await _csv(statement)
    return await asyncio.to_thread(json_response, statement)


async def _csv(statement: Statement) -> web.Response:
    text = await asyncio.to_thread(statement_csv, statement)
    name = re.sub(r"[^a-z0-9.-]", "-", f"{statement.account.namespace}-{statement.account.name}")
    return web.Response(
        body=text.encode(),
        headers={
            "Content-Type": "text/csv; charset=utf-8; header=present",
            "Content-Disposition": f'attachment; filename="statement-{name}-{statement.start:%Y-%m-%d}.csv"',
        },
    )


def _invalid(message: str) -> ApiError:
    return ApiError(400, "InvalidParameter", message)


def _check_names(request: web.Request, known: Collection[str]) -> None:
    """Refuse unknown parameters: a misspelt one must not be ignored."""
    for name in request.query:
        if name not in known:
            raise _invalid(f"{name[:64]} is not a parameter of this call: use {', '.join(known)}")
        if len(request.query.getall(name)) > 1:
            raise _invalid(f"{name} is given more than once: give it once")


def _owner(request: web.Request) -> ObjectKey | str:
    account, namespace = request.query.get("account"), request.query.get("namespace")
    if (account is None) == (namespace is None):
        raise _invalid("give either account=namespace/name, for what it pays, or namespace, for its services")
    if account is not None:
        return _key(request, "account")
    if namespace is None or _NAMESPACE.fullmatch(namespace) is None:
        raise _invalid("namespace must be the name of a namespace, such as team-a")
    return namespace


def _key(request: web.Request, name: str) -> ObjectKey:
    try:
        key = parse_key(request.query[name])
    except ValueError as error:
        raise _invalid(f"{name} must be namespace/name: {error}") from error
    if _NAMESPACE.fullmatch(key.namespace) is None:
        raise _invalid(f"{name} must be namespace/name, with the name of a namespace")
    return key


def _filters(request: web.Request, owner: ObjectKey | str) -> UsageQuery:
    """The query without its times."""
    service = _key(request, "service") if "service" in request.query else None
    if service is not None and isinstance(owner, str) and service.namespace != owner:
        raise _invalid(f"service {service} is not in namespace {owner}: give its own namespace")
    groups = [text for text in request.query.get("groupBy", "").split(",") if text]
    for text in groups:
        if text not in set(Group):
            raise _invalid(f"groupBy must be any of {', '.join(Group)}, with commas between them")
    return UsageQuery(
        owner=owner,
        start=_BEGINNING,
        end=_BEGINNING,
        group_by=frozenset(map(Group, groups)),
        bucket=Bucket(_one_of(request, "bucket", list(Bucket), Bucket.NONE)),
        service=service,
        model=_name(request, "model"),
        api_key=_name(request, "apiKey"),
    )


def _one_of(request: web.Request, name: str, words: Collection[str], default: str) -> str:
    word = request.query.get(name, default)
    if word not in words:
        raise _invalid(f"{name} must be one of {', '.join(words)}")
    return word


def _name(request: web.Request, name: str) -> str | None:
    text = request.query.get(name)
    if text is not None and not (0 < len(text) <= 253 and text.isprintable()):
        raise _invalid(f"{name} must have 1 to 253 printable characters")
    return text


def _period(request: web.Request, days: int) -> tuple[datetime, datetime]:
    if "from" not in request.query:
        raise _invalid("from is missing: give an RFC 3339 time, such as 2026-01-31T00:00:00Z")
    start = _time(request, "from")
    end = _time(request, "to") if "to" in request.query else utc_now()
    _check_period(start, end, days)
    return start, end


def _time(request: web.Request, name: str) -> datetime:
    # A plus in a query is decoded to a space, and no offset begins with a space.
    text = re.sub(r" (?=\d\d:\d\d$)", "+", request.query[name])
    try:
        return parse_time(text)
    except ValueError as error:
        raise _invalid(f"{name} cannot be read: {error}") from error


def _check_period(start: datetime, end: datetime, days: int) -> None:
    if start < _BEGINNING:
        raise _invalid("from must not be before 1970")
    if end > _END:
        raise _invalid("to must not be after November of 9999")
    if end <= start:
        raise _invalid("to must be after from (without to: now)")
    if end - start > timedelta(days=days):
        raise _invalid(f"from and to must be at most {days} days apart: send several requests")


def _cursor(query: UsageQuery, as_of: AsOf, place: Place) -> str:
    """Encode where the next page begins. It contains no secret and grants no right."""
    content = [_fingerprint(query), to_micros(query.start), to_micros(query.end), *as_of, *place]
    return base64.urlsafe_b64encode(json.dumps(content, separators=(",", ":")).encode()).decode().rstrip("=")


def _fingerprint(query: UsageQuery) -> str:
    """A fingerprint of the query: a cursor is valid for its report alone."""
    parts = (
        type(query.owner).__name__,
        str(query.owner),
        sorted(query.group_by),
        query.bucket,
        str(query.service),
        query.model,
        query.api_key,
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _continued(request: web.Request, query: UsageQuery) -> tuple[UsageQuery, AsOf, Place]:
    """The query with the times of its first page, and the place where this page begins."""
    fault = _invalid("cursor must be `next` of the page before, with the same parameters")
    text = request.query["cursor"]
    try:
        content: Any = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, binascii.Error, RecursionError) as error:
        raise fault from error
    groups = len(query.group_by) + 1
    types = [str, int, int, int, int, *([] if query.bucket is Bucket.NONE else [int]), *([str] * groups)]
    if not isinstance(content, list) or [type(item) for item in content] != types:
        raise fault
    mark, start, end, sequence, written_at, *place = content
    if mark != _fingerprint(query) or not all(map(_is_storable, content)):
        raise fault
    try:
        query = replace(query, start=from_micros(start), end=from_micros(end))
    except OverflowError as error:
        raise fault from error
    for name, moment in (("from", query.start), ("to", query.end)):
        if name in request.query and _time(request, name) != moment:
            raise fault
    _check_period(query.start, query.end, MAX_USAGE_DAYS)
    return query, AsOf(sequence, written_at), tuple(place)


def _is_storable(value: int | str) -> bool:
    """Whether a value of a cursor can be used in a query. A page never has others."""
    return value.isprintable() if isinstance(value, str) else 0 <= value < 2**62
