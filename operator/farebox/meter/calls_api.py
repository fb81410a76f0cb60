"""The routes of single calls: GET /v1/calls and GET /v1/calls/{requestId} (B32).

The right is that of usage reports: an account's calls need the right to its BillingAccount, a namespace's
calls the right to its InferenceServices.
"""

import asyncio
from datetime import datetime
from typing import Final

from aiohttp import web

from farebox.clock import to_micros
from farebox.domain.keys import ObjectKey
from farebox.ledger.reports.calls import CallPlace, read_call, read_calls
from farebox.meter.parameters import (
    MAX_DAYS,
    authorized_owner,
    check_names,
    cursor_times,
    decode_cursor,
    encode_cursor,
    fingerprint,
    invalid_cursor,
    one_of,
    period_of,
    services_of,
    text_of,
)
from farebox.meter.requests import ApiError, integer, json_response
from farebox.meterapi.calls import MAX_CALLS, CallPage, CallQuery

_OWNERS: Final = ("account", "namespace")
_LIST: Final = (
    *(*_OWNERS, "service", "model", "apiKey", "status", "estimated"),
    *("from", "to", "limit", "cursor"),
)


async def get_calls(request: web.Request) -> web.Response:
    """List the calls of an account or a namespace, the newest first."""
    ledger, owner = await authorized_owner(request)
    check_names(request, _LIST)
    limit = integer(request, "limit", 100, at_least=1, at_most=MAX_CALLS)
    after: CallPlace | None = None
    if "cursor" in request.query:
        query, after = _continued(request, owner)
    else:
        query = _query(request, owner, *period_of(request, MAX_DAYS))
    read = await ledger.report(lambda connection: read_calls(connection, query, limit, after))
    cursor = None
    if read.next is not None:
        times = (to_micros(query.start), to_micros(query.end))
        cursor = encode_cursor([_fingerprint(query), *times, *read.next])
    page = CallPage(query.start, query.end, tuple(read.calls), cursor)
    return await asyncio.to_thread(json_response, page)


async def get_call(request: web.Request) -> web.Response:
    """Look one call up by its request id."""
    ledger, owner = await authorized_owner(request)
    check_names(request, _OWNERS)
    request_id = request.match_info["request_id"]
    found = None
    if request_id.isprintable():
        found = await ledger.report(lambda connection: read_call(connection, owner, request_id))
    if found is None:
        of = f"account {owner}" if isinstance(owner, ObjectKey) else f"namespace {owner}"
        raise ApiError(
            404,
            "CallNotFound",
            f"No call {request_id!r} of {of} is stored. A call is stored some seconds after its end. Refused "
            "calls are only counted (GET /v1/refusals), and calls that failed are not stored",
        )
    return json_response(found)


def _query(request: web.Request, owner: ObjectKey | str, start: datetime, end: datetime) -> CallQuery:
    estimated = one_of(request, "estimated", ("true", "false", ""), "")
    return CallQuery(
        owner=owner,
        start=start,
        end=end,
        services=services_of(request, owner),
        model=text_of(request, "model"),
        api_key=text_of(request, "apiKey"),
        status=integer(request, "status", 0, at_most=999) if "status" in request.query else None,
        estimated=None if not estimated else estimated == "true",
    )


def _fingerprint(query: CallQuery) -> str:
    return fingerprint(
        type(query.owner).__name__,
        str(query.owner),
        None if query.services is None else sorted(map(str, query.services)),
        query.model,
        query.api_key,
        query.status,
        query.estimated,
    )


def _continued(request: web.Request, owner: ObjectKey | str) -> tuple[CallQuery, CallPlace]:
    """The query with the times of its first page, and the place where this page begins."""
    mark, start, end, *place = decode_cursor(request, [str, int, int, int, int])
    query = _query(request, owner, *cursor_times(request, start, end))
    if mark != _fingerprint(query):
        raise invalid_cursor()
    return query, CallPlace(*place)
