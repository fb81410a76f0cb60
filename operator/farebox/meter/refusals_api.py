"""The routes of refused calls: gateways POST their counts to /v1/refusals, readers GET sums (B32)."""

import asyncio
from functools import partial
from typing import Final

from aiohttp import web

from farebox.ledger.reports.refusals import read_refusals
from farebox.meter.auth import Permission
from farebox.meter.parameters import (
    check_names,
    invalid,
    namespace_of,
    one_of,
    period_of,
    services_of,
    text_of,
)
from farebox.meter.requests import POST_USAGE, authorized, bearer_token, json_response, read_body
from farebox.meterapi.refusals import (
    RETENTION,
    RefusalCounts,
    RefusalQuery,
    RefusalReceipt,
    RefusalReport,
)
from farebox.meterapi.reports import Bucket
from farebox.meterapi.schema import from_json

_PARAMETERS: Final = ("namespace", "service", "apiKey", "code", "bucket", "from", "to")
_BUCKETS: Final = (Bucket.NONE, Bucket.MINUTE, Bucket.HOUR, Bucket.DAY)


async def post_refusals(request: web.Request) -> web.Response:
    """Store the counts of a gateway. A count may be sent again, with the same or a larger number."""
    ledger = await authorized(request, POST_USAGE)
    counts = await read_body(request, partial(from_json, RefusalCounts))
    stored = await ledger.count_refusals(counts) if counts.refusals else 0
    return json_response(RefusalReceipt(stored))


async def get_refusals(request: web.Request) -> web.Response:
    """Sum the refused calls of a namespace, or of all for those who may read the services of all."""
    bearer_token(request)
    namespace = namespace_of(request) if "namespace" in request.query else None
    ledger = await authorized(request, Permission("get", "inferenceservices", namespace or ""))
    check_names(request, _PARAMETERS)
    query = _query(request, namespace)
    rows = await ledger.report(lambda connection: read_refusals(connection, query))
    report = RefusalReport(query.start, query.end, query.bucket, tuple(rows))
    return await asyncio.to_thread(json_response, report)


def _query(request: web.Request, namespace: str | None) -> RefusalQuery:
    service = None
    if "service" in request.query:
        if namespace is None:
            raise invalid("service needs namespace: give the namespace of the service")
        services = services_of(request, namespace) or frozenset()
        if len(services) != 1:
            raise invalid("service must name one service as namespace/name")
        service = next(iter(services)).name
    start, end = period_of(request, RETENTION.days + 1)
    return RefusalQuery(
        namespace=namespace,
        start=start,
        end=end,
        bucket=Bucket(one_of(request, "bucket", _BUCKETS, Bucket.NONE)),
        service=service,
        api_key=text_of(request, "apiKey"),
        code=text_of(request, "code"),
    )
