"""The meter's HTTP API: routes, permissions and answers in front of `Ledger`; see docs/meter-api.md.

A route authorizes the caller before it reads a body, and answers a write only after the commit.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

import structlog
from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from farebox.errors import LedgerRefused, LedgerUnavailable
from farebox.meter import calls_api, cloudevents, refusals_api, reports_api
from farebox.meter.auth import Permission
from farebox.meter.requests import (
    METER,
    POST_USAGE,
    ApiError,
    Meter,
    account_of_path,
    authorized,
    found,
    integer,
    json_response,
    read_body,
)
from farebox.meterapi.schema import SEQUENCE_HEADER, from_json, read_records
from farebox.meterapi.types import CreditLeaseRequest, TopUpOrder
from farebox.meterapi.usage import PendingEvent

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
_LARGE_BODY_BYTES: Final = 64 * 1024
MAX_WAIT_SECONDS: Final = 60.0
MAX_PAGE: Final = 10_000

POST_RECORDS: Final = Permission("create", "ledgerrecords")
WATCH_ACCOUNTS: Final = Permission("watch", "billingaccounts")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_log = structlog.get_logger(__name__)


def create_app(meter: Meter) -> web.Application:
    """The web application. The caller opens and closes `meter.ledger`."""
    app = web.Application(middlewares=[_measured, _errors], client_max_size=MAX_BODY_BYTES)
    app[METER] = meter
    app.add_routes(
        [
            web.post("/v1/events", post_events),
            web.get("/v1/events/pending", get_pending),
            web.post("/v1/records", post_records),
            web.post("/v1/topups", post_topup),
            web.post("/v1/budgets", post_lease),
            web.get("/v1/changes", get_changes),
            web.get("/v1/accounts/{namespace}/{name}", get_account),
            web.get("/v1/accounts/{namespace}/{name}/statement", reports_api.get_statement),
            web.get("/v1/usage", reports_api.get_usage),
            web.get("/v1/calls", calls_api.get_calls),
            web.get("/v1/calls/{request_id}", calls_api.get_call),
            web.post("/v1/refusals", refusals_api.post_refusals),
            web.get("/v1/refusals", refusals_api.get_refusals),
            web.get("/healthz", get_healthz),
            web.get("/readyz", get_readyz),
            web.get("/metrics", get_metrics),
        ]
    )
    app.on_shutdown.append(_end_long_polls)
    return app


async def post_events(request: web.Request) -> web.Response:
    """Store usage events and charge each exactly once by (source, id) (B12)."""
    ledger = await authorized(request, POST_USAGE)
    try:
        parsed = await _parsed(request)
    except cloudevents.InvalidBody as invalid:
        status = 413 if invalid.reason == "TooManyEvents" else 400
        raise ApiError(status, invalid.reason, invalid.message) from invalid
    result = await ledger.ingest(parsed.events)
    # The ledger counts the events that could be read, the sender counts all of them.
    late = [replace(item, index=parsed.indexes[item.index]) for item in result.rejected]
    rejected = sorted([*parsed.rejected, *late], key=lambda item: item.index)
    metrics = request.app[METER].metrics
    counts = metrics.events
    counts.labels("charged").inc(result.accepted - result.pending)
    counts.labels("pending").inc(result.pending)
    counts.labels("duplicate").inc(result.duplicate)
    counts.labels("rejected").inc(len(rejected))
    for item in result.metered:
        labels = (item.model, str(item.estimated).lower())
        metrics.calls.labels(*labels).inc(item.calls)
        metrics.tokens.labels(*labels).inc(item.tokens)
    answer = replace(result, rejected=tuple(rejected))
    return json_response(answer, **{SEQUENCE_HEADER: str(result.sequence)})


async def _parsed(request: web.Request) -> cloudevents.Parsed:
    """Parse the events of a request in any of the three modes of CloudEvents over HTTP."""
    content_type = request.content_type
    if content_type in (cloudevents.STRUCTURED, cloudevents.BATCH):
        body = await request.read()
        if len(body) < _LARGE_BODY_BYTES:
            return cloudevents.parse(body, content_type)
        # In a thread, so that it does not block other requests.
        return await asyncio.to_thread(cloudevents.parse, body, content_type)
    if content_type == cloudevents.BINARY and any(map(cloudevents.is_attribute, request.headers)):
        return cloudevents.parse_binary(request.headers.items(), await request.read())
    raise ApiError(
        415,
        "UnsupportedMediaType",
        f"Content-Type must be {cloudevents.STRUCTURED} or {cloudevents.BATCH}, or {cloudevents.BINARY} "
        f"with the event's attributes as headers ({cloudevents.ATTRIBUTE}id, ...)",
    )


async def get_pending(request: web.Request) -> web.Response:
    """List the usage that is not charged yet, and what it waits for."""
    ledger = await authorized(request, WATCH_ACCOUNTS)
    after = integer(request, "after", 0)
    limit = integer(request, "limit", 1000, at_least=1, at_most=MAX_PAGE)
    events = await ledger.pending(after, limit)
    return web.json_response(
        {
            "events": [_pending(item) for item in events],
            "next": events[-1].cursor if len(events) == limit else None,
        }
    )


async def post_records(request: web.Request) -> web.Response:
    """Record the operator's facts. Invalid ones are refused one by one (B23)."""
    ledger = await authorized(request, POST_RECORDS)
    body = await read_body(request, read_records)
    return json_response(body.answer(await ledger.record(body.records)))


async def post_topup(request: web.Request) -> web.Response:
    """Post a top-up, once by account and reference (B10)."""
    ledger = await authorized(request, POST_RECORDS)
    order = await read_body(request, partial(from_json, TopUpOrder))
    return json_response(await ledger.post_topup(order))


async def post_lease(request: web.Request) -> web.Response:
    """Lease money of an account to a gateway, so that the account never exceeds its credit limit (B17)."""
    ledger = await authorized(request, POST_USAGE)
    order = await read_body(request, partial(from_json, CreditLeaseRequest))
    return json_response(await ledger.lease_credit(order))


async def get_changes(request: web.Request) -> web.Response:
    """Long-poll the accounts, quotas and reservations that changed after a sequence number."""
    ledger = await authorized(request, WATCH_ACCOUNTS)
    after = integer(request, "after", 0)
    limit = integer(request, "limit", 1000, at_least=1, at_most=MAX_PAGE)
    page = await ledger.changes(after, _wait_seconds(request), limit)
    return json_response(page)


async def get_account(request: web.Request) -> web.Response:
    """Read one account."""
    ledger = await authorized(request, Permission("get", "billingaccounts", request.match_info["namespace"]))
    key = account_of_path(request)
    return json_response(found(key, await ledger.account(key)))


async def get_healthz(request: web.Request) -> web.Response:
    """Liveness: the event loop answers."""
    return web.Response(text="ok\n")


async def get_readyz(request: web.Request) -> web.Response:
    """Readiness: the database answers and has the schema of this version."""
    ledger = request.app[METER].ledger
    if ledger is None:
        return web.Response(status=503, text="The ledger's database is not open yet\n")
    if not await ledger.ready():
        return web.Response(
            status=503, text="The ledger's database does not answer, is read-only, or has another schema\n"
        )
    return web.Response(text="ok\n")


async def get_metrics(request: web.Request) -> web.Response:
    """Metrics in the Prometheus text format."""
    meter = request.app[METER]
    if meter.ledger is not None:
        try:
            meter.metrics.pending.set(await meter.ledger.pending_count())
            meter.metrics.head.set(await meter.ledger.head())
        except LedgerUnavailable as error:
            _log.warning("metrics.ledger_unavailable", error=str(error))
    return web.Response(
        body=generate_latest(meter.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
    )


def _wait_seconds(request: web.Request) -> float:
    text = request.query.get("wait", "0")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise ApiError(400, "InvalidParameter", f"wait must be seconds from 0 to {MAX_WAIT_SECONDS:g}")
    return seconds


def _pending(item: PendingEvent) -> dict[str, Any]:
    event = item.event
    return {
        "cursor": item.cursor,
        "source": event.source,
        "id": event.id,
        "service": str(event.service),
        "time": event.time.isoformat(),
        "receivedAt": item.received_at.isoformat(),
        "model": event.model,
        "inputTokens": event.input_tokens,
        "cachedInputTokens": event.cached_input_tokens,
        "cacheWriteInputTokens": event.cache_write_input_tokens,
        "outputTokens": event.output_tokens,
        "reason": item.reason,
        "waitingFor": item.waiting_for,
    }


async def _end_long_polls(app: web.Application) -> None:
    """End long polls before the server waits for running requests."""
    ledger = app[METER].ledger
    if ledger is not None:
        ledger.end_waits()


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error as {"error": {"reason", "message"}}."""
    try:
        return await handler(request)
    except ApiError as error:
        challenge = {"WWW-Authenticate": 'Bearer realm="farebox-meter"'} if error.status == 401 else {}
        return _error(error.status, error.reason, error.message, **challenge)
    except LedgerRefused as refusal:
        return _error(409, refusal.reason, refusal.message)
    except LedgerUnavailable as error:
        return _error(503, "LedgerUnavailable", f"{error}: try again")
    except web.HTTPRequestEntityTooLarge:
        message = f"The body is larger than {MAX_BODY_BYTES} bytes: send less at a time"
        return _error(413, "BodyTooLarge", message)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"{request.path} does not accept {request.method}: use {allowed}"
        return _error(405, "MethodNotAllowed", message, Allow=allowed)
    except web.HTTPNotFound:
        return _error(404, "NotFound", f"Nothing at {request.path}: see docs/meter-api.md")
    except web.HTTPException as error:
        return _error(error.status, error.reason.title().replace(" ", ""), f"{request.method} {request.path}")
    except ConnectionResetError:
        # The client disconnected in the middle of its request; no one reads this answer.
        return _error(
            400, "ConnectionLost", "The connection was lost in the middle of the request: repeat it"
        )
    except Exception:
        _log.exception("request.failed", method=request.method, path=request.path)
        return _error(500, "InternalError", "The meter failed: see its log")


def _error(status: int, reason: str, message: str, **headers: str) -> web.Response:
    body = {"error": {"reason": reason, "message": message}}
    return web.json_response(body, status=status, headers=headers)


@web.middleware
async def _measured(request: web.Request, handler: Handler) -> web.StreamResponse:
    histogram = request.app[METER].metrics.request_seconds
    started = asyncio.get_running_loop().time()
    response = await handler(request)
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else "other"
    method = request.method if resource is not None else "other"
    histogram.labels(method, route, str(response.status)).observe(asyncio.get_running_loop().time() - started)
    return response
