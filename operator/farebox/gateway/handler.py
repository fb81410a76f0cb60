"""The Handler decides a call: from its head and body to a Route, or to an error response.

    head -> identify the key -> body -> admit (pure) -> hold money -> count limits -> route

The rules are in `farebox.domain.admission.rules`; they raise Denied, which becomes a response in `handle` (by
the head) and `_decide` (with the body), and nowhere else. A call that is denied after money was held or
limits were counted returns both. `settlement` handles the end of a call.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Final

import msgspec
import structlog

from farebox.api import StreamUsage
from farebox.clock import milliseconds, utc_now
from farebox.domain.admission.addresses import Network
from farebox.domain.admission.rate_limits import Consumption, expected_input
from farebox.domain.admission.rules import (
    admit_known,
    balance_unknown,
    check_limits,
    identify,
    look_up,
    model_served,
)
from farebox.domain.admission.types import Allow, Call, Denied, KeyPolicy, LimitStatus, ServicePolicy
from farebox.domain.billing.money import Nano
from farebox.domain.keys import ObjectKey
from farebox.errors import LedgerUnavailable
from farebox.gateway.convert import ModelUpstream, Provider
from farebox.gateway.credentials import Credentials, CredentialsUnavailable
from farebox.gateway.interface import BodyHandler, ImmediateResponse, RequestHead, Route
from farebox.gateway.ratelimit.base import Counters
from farebox.gateway.request.body import RequestBody, parsing
from farebox.gateway.request.endpoints import (
    COUNT_TOKENS_PATH,
    ENDPOINTS,
    MESSAGES,
    MODELS_PATH,
    APIEndpoint,
)
from farebox.gateway.request.errors import denial_response, error_response, in_form_of, too_many_refused
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
_encode: Final = msgspec.json.Encoder().encode


@dataclass
class Handler:
    """Decides calls. `handle` is the transport's HeadHandler.

    Args:
        backend_address: "host:port" of a backend, from the name of its Service and its port.
        trusted_proxies: the proxies whose X-Forwarded-For is trusted.
        request_headers: names of client headers that are forwarded beside the usual ones, in lower case.
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

    def handle(self, head: RequestHead) -> ImmediateResponse | BodyHandler:
        """Decide a call by its head (B13-B15), so that refused callers need not send a body."""
        if not self.ready.is_set():
            message = "The gateway is starting. Retry later"
            return in_form_of(error_response(503, "starting", message, head.request_id), head)
        path = head.path.partition("?")[0]
        try:
            endpoint = ENDPOINTS.get(path)
            if endpoint is None and path != COUNT_TOKENS_PATH:
                return self._handle_other_path(head, path)
            if head.method != "POST":
                return in_form_of(_method_not_allowed(head, path, "POST"), head)
            check_headers(head)
            caller = self._caller(head)
            key = identify(caller, self.snapshot, self.clock()).key
            wait = self.refused.retry_after(key, self.clock().timestamp())
        except Denied as denied:
            return in_form_of(denial_response(denied, head.request_id), head)
        if wait:
            return in_form_of(too_many_refused(head, wait), head)
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
        size = len(body or b"")
        try:
            if body is None:
                raise Denied(400, "missing_body", "The request has no body. Send a JSON object")
            request = await self.turns.run(parsing(endpoint or MESSAGES, body), key, size)
            call = msgspec.structs.replace(
                caller,
                model=request.model,
                body_bytes=size,
                asked_output=request.asked_output,
                choices=request.choices,
                inputs=request.inputs,
                text_only=request.content.text_only,
                media=request.content.media,
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
            return in_form_of(denial_response(denied, head.request_id), head)

    def _count_tokens(self, head: RequestHead, call: Call, key: KeyPolicy) -> ImmediateResponse:
        """The estimated input of a call of the messages API, active or not. Raises Denied."""
        model = model_served(look_up(call, key, self.snapshot), self.snapshot)
        return _answer(head, {"input_tokens": expected_input(call, model)})

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

    def _handle_other_path(self, head: RequestHead, path: str) -> ImmediateResponse:
        """The response at a path that is not forwarded. Raises Denied."""
        path = path.rstrip("/") if path.startswith(f"{MODELS_PATH}/") else path
        if path == MODELS_PATH or path.startswith(f"{MODELS_PATH}/"):
            return self._list_models(head, path)
        known = ", ".join((*ENDPOINTS, COUNT_TOKENS_PATH, MODELS_PATH))
        raise Denied(404, "unknown_url", f"Unknown URL. The gateway serves {known}")

    def _list_models(self, head: RequestHead, path: str) -> ImmediateResponse:
        """GET /v1/models, or one model: the services that the key may call, active or not. Raises Denied."""
        if head.method not in ("GET", "HEAD"):
            return _method_not_allowed(head, path, "GET, HEAD")
        check_headers(head)
        caller = self._caller(head)
        key = identify(caller, self.snapshot, self.clock())

        def named(name: str) -> ServicePolicy:
            return look_up(msgspec.structs.replace(caller, model=name), key, self.snapshot)

        if path != MODELS_PATH:
            return _answer(head, _model(named(path.removeprefix(f"{MODELS_PATH}/"))))
        listed = []
        for service in self.snapshot.services_in(key.key.namespace):
            try:
                listed.append(_model(named(service.key.name)))
            except Denied:
                continue
        return _answer(head, {"object": "list", "data": listed})


def _bound_per_answer(allow: Allow, request: RequestBody) -> int | None:
    """The output bound to write into a body that has none, so that a call cannot cost more than its hold.

    A bound equal to the model's context is left out: the upstream enforces its context anyway, and refuses
    a bound that leaves no room for the prompt.
    """
    if allow.hold is None or allow.output_bound is None:
        return None
    bound = allow.output_bound // request.choices
    return None if bound == allow.model.context_tokens else bound


def _method_not_allowed(head: RequestHead, path: str, allowed: str) -> ImmediateResponse:
    message = f"{path} accepts only {allowed}"
    return error_response(405, "method_not_allowed", message, head.request_id, {"allow": allowed})


def _model(service: ServicePolicy) -> dict[str, Any]:
    """A service as an OpenAI model object, with `active` added."""
    created = service.created_at
    return {
        "id": service.key.name,
        "object": "model",
        "created": 0 if created is None else int(created.timestamp()),
        "owned_by": service.key.namespace,
        "active": not service.inactive,
    }


def _answer(head: RequestHead, value: Any) -> ImmediateResponse:
    headers = {"content-type": "application/json", "x-request-id": head.request_id}
    return ImmediateResponse(200, headers, b"" if head.method == "HEAD" else _encode(value))


def service_address(namespace: str) -> Callable[[str, int], str]:
    """The DNS addresses of backends' Services in the cluster."""

    def address(name: str, port: int) -> str:
        return f"{name}.{namespace}.svc:{port}"

    return address
