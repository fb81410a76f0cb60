"""Answers the look-ups of callers: GET /v1/models, /v1/key, /v1/usage and /v1/calls (B31, B32).

A key sees the services of its namespace that it may call, and no other. What the meter knows is read with the
gateway's identity, and always limited to them. Look-ups other than of models count on a limit of their own.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import msgspec
import structlog

from farebox.clock import milliseconds
from farebox.domain.admission.rate_limits import key_counter, limit_requests
from farebox.domain.admission.rules import check_limits, identify, look_up
from farebox.domain.admission.service_state import account_state, service_state
from farebox.domain.admission.types import SLIDING, Call, Denied, KeyPolicy, LimitRequest, ServicePolicy
from farebox.errors import LedgerRefused, LedgerUnavailable
from farebox.gateway.interface import ImmediateResponse, RequestHead
from farebox.gateway.lookups import queries, views
from farebox.gateway.lookups.report_cache import ReportCache
from farebox.gateway.ratelimit.base import Counters
from farebox.gateway.request.endpoints import COUNT_TOKENS_PATH, ENDPOINTS, MODELS_PATH
from farebox.gateway.request.errors import MethodNotAllowed
from farebox.gateway.request.headers import check_headers
from farebox.gateway.request.limit_headers import LOOKUPS, limit_headers
from farebox.gateway.snapshot import GatewaySnapshot
from farebox.meterapi.calls import Call as StoredCall
from farebox.meterapi.calls import CallPage
from farebox.meterapi.reports import UsageReport

log = structlog.get_logger(__name__)
LOOKUPS_PER_MINUTE: Final = 60
"""Of a key; models do not count."""
KEY_PATH: Final = "/v1/key"
USAGE_PATH: Final = "/v1/usage"
CALLS_PATH: Final = "/v1/calls"
PATHS: Final = (MODELS_PATH, KEY_PATH, USAGE_PATH, CALLS_PATH)
_REQUEST_ID: Final = re.compile(r"(?!\.+$)[A-Za-z0-9._-]{1,128}")
_NO_ANSWER: Final = "Usage is temporarily unknown, because the meter does not answer. Retry later"
_encode: Final = msgspec.json.Encoder().encode
T = TypeVar("T")
_Read = Callable[["Caller", str, datetime], Awaitable[views.JSONObject]]
"""Reads an answer for a caller, by the query of the path."""


class LookupMeter(Protocol):
    """What look-ups read of the meter (`MeterClient`). Methods raise LedgerRefused and LedgerUnavailable."""

    async def usage_page(self, params: Mapping[str, str]) -> UsageReport: ...
    async def calls(self, params: Mapping[str, str]) -> CallPage: ...
    async def call(self, request_id: str, params: Mapping[str, str]) -> StoredCall: ...


class Caller(msgspec.Struct, frozen=True):
    """Who asks: the call as far as its head describes it, and its key."""

    call: Call
    key: KeyPolicy


@dataclass
class Lookups:
    """Answers look-ups. `meter` None: those of usage and calls are 503."""

    snapshot: GatewaySnapshot
    counters: Counters
    meter: LookupMeter | None
    cache: ReportCache = field(default_factory=ReportCache)

    def find(
        self, head: RequestHead, call: Call, now: datetime
    ) -> ImmediateResponse | Callable[[], Awaitable[ImmediateResponse]]:
        """The answer to a look-up, or a function that reads it first.

        Both raise Denied: 404 at an unknown path, 405, and as a call with the same key would be.
        """
        path, _, query = head.path.partition("?")
        path = path.rstrip("/") if path.startswith("/v1/") else path
        name = next((each for each in PATHS if path == each or path.startswith(f"{each}/")), None)
        if name is None or (path != name and name in (KEY_PATH, USAGE_PATH)):
            known = ", ".join((*ENDPOINTS, COUNT_TOKENS_PATH, *PATHS))
            raise Denied(404, "unknown_url", f"Unknown URL. The gateway serves {known}")
        if head.method not in ("GET", "HEAD"):
            raise MethodNotAllowed(path, "GET, HEAD")
        check_headers(head)
        caller = Caller(call, identify(call, self.snapshot, now))
        rest = path.removeprefix(name).removeprefix("/")
        if name == MODELS_PATH:
            return answer(head, self._model(caller, rest, now) if rest else self._models(caller, now))
        reads = {KEY_PATH: self._key, USAGE_PATH: self._usage, CALLS_PATH: self._calls}
        read: _Read = partial(self._call, request_id=rest) if rest else reads[name]
        return partial(self._counted, head, query, caller, now, read)

    async def _counted(
        self, head: RequestHead, query: str, caller: Caller, now: datetime, read: _Read
    ) -> ImmediateResponse:
        """Count a look-up on its limit, and answer it. Raises Denied."""
        key = caller.key.key
        counter = f"{LOOKUPS}:{{{key.namespace}}}/{key.name}"
        limit = LimitRequest(LOOKUPS, counter, SLIDING, LOOKUPS_PER_MINUTE, 1)
        at = milliseconds(now)
        taken = await self.counters.take([limit], at)
        check_limits(taken.limit_statuses)
        statuses = taken.statuses_after(at)
        try:
            return answer(head, await read(caller, query, now), limit_headers(statuses))
        except Denied as denied:
            denied.limit_statuses = statuses
            raise

    def _may_call(self, caller: Caller, name: str) -> ServicePolicy:
        """A service of the key, active or not. Raises Denied as a call of it would be."""
        return look_up(msgspec.structs.replace(caller.call, model=name), caller.key, self.snapshot)

    def _services(self, caller: Caller) -> list[ServicePolicy]:
        """The services that the key may call, active or not."""
        services = []
        for service in self.snapshot.services_in(caller.key.key.namespace):
            try:
                services.append(self._may_call(caller, service.key.name))
            except Denied:
                continue
        return services

    def _models(self, caller: Caller, now: datetime) -> views.JSONObject:
        data = [self._view(caller, service, now) for service in self._services(caller)]
        return {"object": "list", "data": data}

    def _model(self, caller: Caller, name: str, now: datetime) -> views.JSONObject:
        return self._view(caller, self._may_call(caller, name), now)

    def _view(self, caller: Caller, service: ServicePolicy, now: datetime) -> views.JSONObject:
        model = self.snapshot.model(service.model)
        return views.model_view(service, model, service_state(caller.key, service, self.snapshot, now))

    async def _key(self, caller: Caller, query: str, now: datetime) -> views.JSONObject:
        """GET /v1/key. The counts of all limits are read at once."""
        queries.no_parameters(query)
        services, at = self._services(caller), milliseconds(now)
        asked = [self._limits(caller.key, service, now) for service in services]
        quota = limit_of_quota(caller.key)
        flat = [each for limits in asked for each in limits]
        read = list(await self.counters.read([*quota, *flat], at))
        status = read.pop(0) if quota else None
        shown = []
        for service, limits in zip(services, asked, strict=True):
            statuses, read = read[: len(limits)], read[len(limits) :]
            state = service_state(caller.key, service, self.snapshot, now)
            account = account_state(self.snapshot.funds(service.account))
            shown.append(views.service_view(service, state, account, statuses, at))
        return views.key_view(caller.key, shown, status, at)

    def _limits(self, key: KeyPolicy, service: ServicePolicy, now: datetime) -> Sequence[LimitRequest]:
        """The limits of a service, without the quota of the key."""
        model = self.snapshot.model(service.model)
        if model is None:
            return ()
        reservation = service.reservation
        if reservation is not None and not reservation.in_force(now):
            reservation = None
        unlimited = KeyPolicy(key.key)
        return limit_requests(_ONE_TOKEN, unlimited, service, model, reservation, 1, 1, enforced=True)

    async def _usage(self, caller: Caller, query: str, now: datetime) -> views.JSONObject:
        """GET /v1/usage."""
        asked = queries.usage_query(query, caller.key, now)
        meter = self._meter()
        question = ("usage", query, caller.key.key.namespace, caller.key.services)
        return views.usage_view(await self._ask(question, partial(meter.usage_page, asked)))

    async def _calls(self, caller: Caller, query: str, now: datetime) -> views.JSONObject:
        """GET /v1/calls."""
        asked = queries.calls_query(query, caller.key, now)
        meter = self._meter()
        question = ("calls", query, caller.key.key.namespace, caller.key.services)
        return views.calls_view(await self._ask(question, partial(meter.calls, asked)))

    async def _call(self, caller: Caller, query: str, now: datetime, *, request_id: str) -> views.JSONObject:
        """GET /v1/calls/{request_id}."""
        queries.no_parameters(query)
        if _REQUEST_ID.fullmatch(request_id) is None:
            raise _call_not_found(request_id)
        namespace = caller.key.key.namespace
        read = partial(self._meter().call, request_id, {"namespace": namespace})
        try:
            found = await self._ask(("call", request_id, namespace), read)
        except LedgerRefused:
            raise _call_not_found(request_id) from None
        if not queries.may_see(caller.key, found.service):
            raise _call_not_found(request_id)
        return views.call_view(found)

    def _meter(self) -> LookupMeter:
        if self.meter is None:
            raise Denied(503, "usage_unknown", _NO_ANSWER)
        return self.meter

    async def _ask(self, question: tuple[Any, ...], read: Callable[[], Awaitable[T]]) -> T:
        """Read from the meter, or from what it answered a short time ago.

        Raises:
            Denied: 503 without an answer; 400 for a parameter that the meter refuses.
            LedgerRefused: CallNotFound.
        """
        try:
            return await self.cache.get(question, read)
        except LedgerUnavailable as error:
            log.warning("lookups.meter_unavailable", error=str(error))
            raise Denied(503, "usage_unknown", _NO_ANSWER) from None
        except LedgerRefused as refusal:
            if refusal.reason == "CallNotFound":
                raise
            if refusal.reason == "InvalidParameter":
                raise queries.invalid(refusal.message) from None
            log.error("lookups.meter_refused", reason=refusal.reason, error=refusal.message)
            raise Denied(503, "usage_unknown", _NO_ANSWER) from None


_ONE_TOKEN: Final = Call("", None, "", 0, 1)
"""A call of one token of output, for the names of its limits."""


def limit_of_quota(key: KeyPolicy) -> Sequence[LimitRequest]:
    """The limit of the key's quota, if it has one."""
    if key.quota is None:
        return ()
    window = key.quota.window
    return (LimitRequest(f"key_quota_{window}", key_counter(key.key, window), window, key.quota.tokens, 1),)


def _call_not_found(request_id: str) -> Denied:
    return Denied(
        404,
        "call_not_found",
        f"No call {request_id[:128]!r} of this key's services is stored. A call is stored some seconds after "
        "its end. Refused and failed calls are not stored",
    )


def answer(head: RequestHead, value: Any, headers: Mapping[str, str] | None = None) -> ImmediateResponse:
    """The answer to a look-up; without its body for HEAD."""
    common = {"content-type": "application/json", "x-request-id": head.request_id}
    body = b"" if head.method == "HEAD" else _encode(value)
    return ImmediateResponse(200, {**common, **(headers or {})}, body)
