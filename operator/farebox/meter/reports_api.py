"""The routes that report usage and postings: GET /v1/usage and statements.

Authorization comes first: an account's money needs the right to its BillingAccount, a namespace's usage needs
the right to its InferenceServices (docs/meter-api.md).
"""

import asyncio
import re
from dataclasses import replace
from typing import Final

from aiohttp import web

from farebox.clock import to_micros
from farebox.domain.keys import ObjectKey
from farebox.ledger.reports.statement import read_statement
from farebox.ledger.reports.usage import AsOf, Place, UsagePage, read_usage
from farebox.meter.auth import Permission
from farebox.meter.parameters import (
    BEGINNING,
    MAX_DAYS,
    authorized_owner,
    check_names,
    cursor_times,
    decode_cursor,
    encode_cursor,
    fingerprint,
    invalid,
    invalid_cursor,
    one_of,
    period_of,
    services_of,
    text_of,
)
from farebox.meter.requests import account_of_path, authorized, found, integer, json_response
from farebox.meterapi.csv import statement_csv
from farebox.meterapi.reports import Bucket, Group, Statement, UsageQuery, UsageReport

MAX_STATEMENT_DAYS: Final = 366
MAX_ROWS: Final = 5_000
"""The limit of rows in a page of usage."""

_USAGE: Final = (
    *("account", "namespace", "service", "model", "apiKey"),
    *("groupBy", "bucket", "from", "to", "limit", "cursor"),
)
_STATEMENT: Final = ("from", "to", "format")


async def get_usage(request: web.Request) -> web.Response:
    """Sum the usage of an account or a namespace (B19)."""
    ledger, owner = await authorized_owner(request)
    check_names(request, _USAGE)
    limit = integer(request, "limit", 1000, at_least=1, at_most=MAX_ROWS)
    query = _filters(request, owner)
    place: Place | None = None
    as_of: AsOf | None = None
    if "cursor" in request.query:
        query, as_of, place = _continued(request, query)
    else:
        start, end = period_of(request, MAX_DAYS)
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
    check_names(request, _STATEMENT)
    account = account_of_path(request)
    start, end = period_of(request, MAX_STATEMENT_DAYS)
    form = one_of(request, "format", ("json", "csv"), "json")
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


def _filters(request: web.Request, owner: ObjectKey | str) -> UsageQuery:
    """The query without its times."""
    groups = [text for text in request.query.get("groupBy", "").split(",") if text]
    for text in groups:
        if text not in set(Group):
            raise invalid(f"groupBy must be any of {', '.join(Group)}, with commas between them")
    return UsageQuery(
        owner=owner,
        start=BEGINNING,
        end=BEGINNING,
        group_by=frozenset(map(Group, groups)),
        bucket=Bucket(one_of(request, "bucket", list(Bucket), Bucket.NONE)),
        services=services_of(request, owner),
        model=text_of(request, "model"),
        api_key=text_of(request, "apiKey"),
    )


def _cursor(query: UsageQuery, as_of: AsOf, place: Place) -> str:
    times = (to_micros(query.start), to_micros(query.end))
    return encode_cursor([_fingerprint(query), *times, *as_of, *place])


def _fingerprint(query: UsageQuery) -> str:
    return fingerprint(
        type(query.owner).__name__,
        str(query.owner),
        sorted(query.group_by),
        query.bucket,
        None if query.services is None else sorted(map(str, query.services)),
        query.model,
        query.api_key,
    )


def _continued(request: web.Request, query: UsageQuery) -> tuple[UsageQuery, AsOf, Place]:
    """The query with the times of its first page, and the place where this page begins."""
    groups = len(query.group_by) + 1
    types = [str, int, int, int, int, *([] if query.bucket is Bucket.NONE else [int]), *([str] * groups)]
    mark, start, end, sequence, written_at, *place = decode_cursor(request, types)
    if mark != _fingerprint(query):
        raise invalid_cursor()
    start, end = cursor_times(request, start, end)
    return replace(query, start=start, end=end), AsOf(sequence, written_at), tuple(place)
