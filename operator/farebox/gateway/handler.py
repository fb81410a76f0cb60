"""The Handler decides a call: from its head and body to a Route, or to an error response.

    head -> identify the key -> body -> admit (pure) -> hold money -> count limits -> route

The rules are in `farebox.domain.admission.rules`; they raise Denied, which becomes a response and is counted
in `_refuse`, and nowhere else. A call that is denied after money was held or limits were counted returns
both. `settlement` handles the end of a call.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final

import msgspec
import structlog

from farebox.api import StreamUsage
from farebox.clock import milliseconds, utc_now
from farebox.domain.admission.addresses import Network
from farebox.domain.admission.estimates import estimate_text
from farebox.domain.admission.rate_limits import Consumption, expected_input
from farebox.domain.admission.rules import (
    admit_known,
    balance_unknown,
    check_limits,
    identify,
    look_up,
    model_served,
)
from farebox.domain.admission.types import NO_MEDIA, Allow, Call, Denied, KeyPolicy, LimitStatus
from farebox.domain.billing.money import Nano
from farebox.domain.keys import ObjectKey
from farebox.errors import LedgerUnavailable
from farebox.gateway.convert import ModelUpstream, Provider
from farebox.gateway.credentials import Credentials, CredentialsUnavailable
from farebox.gateway.interface import BodyHandler, ImmediateResponse, RequestHead, Route
from farebox.gateway.lookups.answers import LookupMeter, Lookups, answer
from farebox.gateway.ratelimit.base import Counters
from farebox.gateway.refusals import RefusalCounter, Refused
from farebox.gateway.request.body import RequestBody, parsing
from farebox.gateway.request.endpoints import (
    COUNT_TOKENS_PATH,
    ENDPOINTS,
    MESSAGES,
    APIEndpoint,
)
from farebox.gateway.request.errors import MethodNotAllowed, TooManyRefused, denial_response, in_form_of
from farebox.gateway.request.fields import added_fields, check_fields
from farebox.gateway.request.headers import (
    BETA,
    address_of,
    check_headers,
    harmless_betas,
    key_hash,
    removed_headers,
)
from farebox.gateway.request.limit_headers import limit_headers
from farebox.gateway.request.workload import RefusedWork, Turns
from farebox.gateway.settlement import Settlement
from farebox.gateway.snapshot import GatewaySnapshot
from farebox.gateway.spend.credit_leases import CreditLeases
from farebox.gateway.spend.tracker import SpendTracker
from farebox.kube.names import dedicated_backend_name
from farebox.metrics import GATEWAY_DECISIONS

log = structlog.get_logger(__name__)
_FORWARDED: Final = GATEWAY_DECISIONS.labels("")
_NO_KEY: Final = ""


@dataclass
class Handler:
    """Decides calls. `handle` is the transport's HeadHandler.

    Args:
        backend_address: "host:port" of a backend, from the name of its Service and its port.
        trusted_proxies: the proxies whose X-Forwarded-For is trusted.
        request_headers: names of client headers that are forwarded beside the usual ones, in lower case.
        meter: answers look-ups of usage and calls; None: they get 503.
        refusals: the counts of refused calls.
        refused, turns: the work of refused calls, and the order in which long bodies are read.
        ready: set once the cluster is read; until then calls are refused with 503.
    """

    snapshot: GatewaySnapshot
    spend: SpendTracker
    leases: CreditLeases
    counters: Counters
    settlement: Settlement
    credentials: Credentials
    backend_address: Callable[[str, int], str]
    trusted_proxies: Sequence[Network] = ()
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    clock: Callable[[], datetime] = utc_now
    request_headers: frozenset[str] = frozenset()
    refused: RefusedWork = field(default_factory=RefusedWork)
    turns: Turns = field(default_factory=Turns)
    meter: LookupMeter | None = None
    refusals: RefusalCounter = field(default_factory=RefusalCounter)
    lookups: Lookups = field(init=False)

    def __post_init__(self) -> None:
        self.lookups = Lookups(self.snapshot, self.counters, self.meter)

    def handle(self, head: RequestHead) -> ImmediateResponse | BodyHandler:
        """Decide a call by its head (B13-B15), so that refused callers need not send a body."""
        if not self.ready.is_set():
            return self._refuse(head, Denied(503, "starting", "The gateway is starting. Retry later"))
        path = head.path.partition("?")[0]
        try:
            endpoint = ENDPOINTS.get(path)
            if endpoint is None and path != COUNT_TOKENS_PATH:
                found = self.lookups.find(head, self._caller(head), self.clock())
                return found if isinstance(found, ImmediateResponse) else partial(self._look_up, head, found)
            if head.method != "POST":
                raise MethodNotAllowed(path, "POST")
            check_headers(head)
            caller = self._caller(head)
            now = self.clock()
            key = identify(caller, self.snapshot, now).key
            wait = self.refused.retry_after(key, now.timestamp())
            if wait:
                raise TooManyRefused(wait)
        except Denied as denied:
            return self._refuse(head, denied)
        return partial(self._decide, head, endpoint, caller, key)

    async def _decide(
        self,
        head: RequestHead,
        endpoint: APIEndpoint | None,
        caller: Call,
        key: ObjectKey,
        body: bytes | None,
    ) -> Route | ImmediateResponse:
        """Decide the same call with its body (B13-B18). Without an endpoint its tokens are counted."""
        size, model = len(body or b""), ""
        try:
            if body is None:
                raise Denied(400, "missing_body", "The request has no body. Send a JSON object")
            request = await self.turns.run(parsing(endpoint or MESSAGES, body), key, size)
            model = request.model
            call = msgspec.structs.replace(
                caller,
                model=model,
                body_bytes=size,
                asked_output=request.asked_output,
                choices=request.choices,
                inputs=request.inputs,
                text_only=request.content.text_only,
                media=request.content.media,
                text_tokens=estimate_text(body) if request.content.media is NO_MEDIA else None,
            )
            now = self.clock()
            # Checked again, because the key may be disabled or expire while the body arrives (B14).
            policy = identify(caller, self.snapshot, now)
            if endpoint is None:
                # Free of charge, so its work counts as that of refused calls.
                self.refused.add(key, size, now.timestamp(), mistake=False)
                return self._count_tokens(head, call, policy)
            allow = admit_known(call, policy, self.snapshot, now)
            return await self._reserve(head, request, allow, milliseconds(now))
        except Denied as denied:
            mistake = denied.status in (400, 403, 404)
            self.refused.add(key, size, self.clock().timestamp(), mistake=mistake)
            return self._refuse(head, denied, model)

    def _count_tokens(self, head: RequestHead, call: Call, key: KeyPolicy) -> ImmediateResponse:
        """The estimated input of a call of the messages API, active or not. Raises Denied."""
        model = model_served(look_up(call, key, self.snapshot), self.snapshot)
        return answer(head, {"input_tokens": expected_input(call, model)})

    async def _reserve(self, head: RequestHead, request: RequestBody, allow: Allow, now: int) -> Route:
        """Hold money, count limits and build the route. Whatever fails on the way, all of it is returned.

        Raises:
            Denied: the balance, a limit or the provider's credentials stop the call.
        """
        request_id, service = head.request_id, allow.service
        upstream = self.snapshot.route(service.model)
        assert upstream is not None, "an admitted model exists"
        check_fields(request, upstream)
        if allow.hold is not None:
            await self._hold(request_id, service.account, allow.hold)
        self.spend.authorize(request_id, service.account, allow.committed, service.model, allow.free_tokens)
        consumption: tuple[Consumption, ...] = ()
        limit_statuses: tuple[LimitStatus, ...] = ()
        try:
            if allow.limit_requests:
                result = await self.counters.take(allow.limit_requests, now)
                check_limits(result.limit_statuses)
                consumption, limit_statuses = result.consumption, result.statuses_after(now)
            provider = upstream.provider
            token = None if provider is None else await self._provider_token(request_id, provider)
            route = self._route(head, request, allow, consumption, limit_statuses, upstream, token)
        except BaseException as error:
            self.settlement.void(request_id, consumption, now)
            if limit_statuses and isinstance(error, Denied):
                error.limit_statuses = limit_statuses
            raise
        self.settlement.admitted(request_id, consumption)
        _FORWARDED.inc()
        return route

    async def _hold(self, request_id: str, account: ObjectKey, amount: Nano) -> None:
        """Hold the maximum cost of a call (B17, Hard). Raises Denied."""
        try:
            held = await self.leases.hold(request_id, account, amount)
        except LedgerUnavailable:
            raise balance_unknown() from None
        if not held:
            raise Denied(
                402,
                "insufficient_balance",
                "The available balance does not cover the maximum cost of the call. Lower max_tokens or top "
                "up the account",
            )

    async def _provider_token(self, request_id: str, provider: Provider) -> str | None:
        """The provider's token, if it needs one. Raises Denied, without the name of the Secret."""
        if provider.secret is None:
            return None
        try:
            return await self.credentials.token(provider.secret)
        except CredentialsUnavailable as error:
            log.error("credentials.unavailable", request_id=request_id, error=str(error))
            raise Denied(
                503,
                "credentials_unavailable",
                "The credentials of the model's provider are unavailable. Contact the cluster administrator",
            ) from None

    def _route(
        self,
        head: RequestHead,
        request: RequestBody,
        allow: Allow,
        consumption: tuple[Consumption, ...],
        limit_statuses: tuple[LimitStatus, ...],
        upstream: ModelUpstream,
        token: str | None,
    ) -> Route:
        """The route of an admitted call; `token` is the provider's, if it needs one."""
        service = allow.service
        headers, stream_usage = {"accept-encoding": "identity"}, upstream.stream_usage
        if BETA in head.headers and BETA not in self.request_headers:
            betas = harmless_betas(head.headers[BETA])
            if betas:
                headers[BETA] = betas
        if upstream.provider is not None:
            address, tls = upstream.provider.upstream, upstream.provider.tls
            path = upstream.provider.base_path + request.endpoint.operation
            if token is not None:
                headers["authorization"] = f"Bearer {token}"
                if request.endpoint is MESSAGES:
                    headers["x-api-key"] = token
        else:
            name = dedicated_backend_name(service.key) if service.dedicated else upstream.backend
            address, tls, path = self.backend_address(name, upstream.port), False, request.endpoint.path
        labels = self.settlement.labels_of(allow, request, consumption)
        return Route(
            upstream=address,
            tls=tls,
            path=path,
            body=request.rewritten(
                upstream.served_name,
                stream_usage,
                _bound_per_answer(allow, request),
                added_fields(request, upstream, service.key.namespace, shared=not service.dedicated),
            ),
            set_headers=headers,
            remove_headers=removed_headers(head.headers, headers, self.request_headers),
            labels=labels,
            redaction=request.redaction(stream_usage),
            dialect=request.endpoint.dialect,
            choices=request.choices,
            usage_by_choice=stream_usage is StreamUsage.EACH_EVENT and request.asks_for_usage(stream_usage),
            response_headers=limit_headers(limit_statuses) if limit_statuses else {},
        )

    def _caller(self, head: RequestHead) -> Call:
        """The call as far as the head describes it."""
        return Call(key_hash(head) or _NO_KEY, address_of(head, self.trusted_proxies), "", 0, None)

    async def _look_up(
        self, head: RequestHead, read: Callable[[], Awaitable[ImmediateResponse]], body: bytes | None
    ) -> ImmediateResponse:
        """The answer to a look-up that has to be read first. It needs no body."""
        try:
            return await read()
        except Denied as denied:
            return self._refuse(head, denied)

    def _refuse(self, head: RequestHead, denied: Denied, model: str = "") -> ImmediateResponse:
        """The response to a denied call, which is counted (B32). `model` is the name in its body."""
        self.count_refusal(head, denied.status, denied.code, model)
        return in_form_of(denial_response(denied, head.request_id), head)

    def count_refusal(self, head: RequestHead, status: int, code: str, model: str = "") -> None:
        """Count a refused call of a key's namespace. Names of keys and services that do not exist are not."""
        key = self.snapshot.key(key_hash(head) or _NO_KEY)
        if key is None:
            refused = Refused("", None, None, code, status)
        else:
            namespace, name = key.key
            known = bool(model) and self.snapshot.service(namespace, model) is not None
            refused = Refused(namespace, model if known else None, name, code, status)
        self.refusals.add(refused, self.clock())


def _bound_per_answer(allow: Allow, request: RequestBody) -> int | None:
    """The output bound to write into a body that has none, so that a call cannot cost more than its hold.

    A bound equal to the model's context is left out: the upstream enforces its context anyway, and refuses
    a bound that leaves no room for the prompt.
    """
    if allow.hold is None or allow.output_bound is None:
        return None
    bound = allow.output_bound // request.choices
    return None if bound == allow.model.context_tokens else bound


def service_address(namespace: str) -> Callable[[str, int], str]:
    """The DNS addresses of backends' Services in the cluster."""

    def address(name: str, port: int) -> str:
        return f"{name}.{namespace}.svc:{port}"

    return address
