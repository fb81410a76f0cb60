"""The Handler: from the head and body of a call to where it goes, or why it does not.

    head -> who calls, or why not -> body -> admit (pure) -> hold money -> count -> forward

It holds no rule of its own: those are in `farebox.domain.admission.rules`. A call that is refused after money
was held gets it back; what follows a call's end is in `settlement`.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Final

import msgspec
import structlog

from farebox.clock import milliseconds, utc_now
from farebox.domain.admission.addresses import Network
from farebox.domain.admission.cases import Allow, Deny
from farebox.domain.admission.rate_limits import Consumption
from farebox.domain.admission.rules import admit_known, identify, limit_refusal, look_up
from farebox.domain.admission.types import Call, ServicePolicy
from farebox.errors import InvalidCall, LedgerUnavailable
from farebox.gateway.convert import ModelUpstream
from farebox.gateway.credentials import Credentials, CredentialsUnavailable
from farebox.gateway.interface import BodyHandler, ImmediateResponse, RequestHead, Route
from farebox.gateway.ratelimit.memory import Counters
from farebox.gateway.request.body import RequestBody, parse
from farebox.gateway.request.endpoints import ENDPOINTS, MESSAGES, MODELS_PATH, APIEndpoint
from farebox.gateway.request.errors import of_rule, refuse
from farebox.gateway.request.headers import address_of, check_headers, key_hash, removed_headers
from farebox.gateway.settlement import Settlement, labels_of
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
    """Decides calls. `handle` is the transport's Handler.

    Args:
        backend_address: "host:port" of a backend, from the name of its Service and its port.
        trusted_proxies: whose X-Forwarded-For is believed.
        ready: set once the cluster was read; calls before are refused with 503.
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

    def handle(self, head: RequestHead) -> ImmediateResponse | BodyHandler:
        """Decide one call by its head (B13-B15): who is not to be served sends no body."""
        path = head.path.partition("?")[0]
        endpoint = ENDPOINTS.get(path)
        if not self.ready.is_set():
            return refuse(503, "starting", "the gateway has not read the cluster yet", head.request_id)
        try:
            if endpoint is None:
                return self._elsewhere(head, path)
            if head.method != "POST":
                message = f"{path} takes POST alone"
                return refuse(405, "method_not_allowed", message, head.request_id, {"allow": "POST"})
            check_headers(head)
            caller = self._caller(head)
            known_key = identify(caller, self.snapshot, self.clock())
            if isinstance(known_key, Deny):
                return of_rule(known_key, head.request_id)
        except InvalidCall as error:
            return refuse(400, error.code, error.message, head.request_id)
        return partial(self._decide, head, endpoint, caller)

    async def _decide(
        self, head: RequestHead, endpoint: APIEndpoint, caller: Call, body: bytes | None
    ) -> Route | ImmediateResponse:
        """Decide the same call with its body (B13-B18)."""
        try:
            now = self.clock()
            # Asked again: while the body came, the key may have been disabled, or expired (B14).
            key = identify(caller, self.snapshot, now)
            if isinstance(key, Deny):
                return of_rule(key, head.request_id)
            if body is None:
                raise InvalidCall("missing_body", "the request has no body: send JSON")
            request = parse(endpoint, body)
            call = Call(
                key_hash=caller.key_hash,
                address=caller.address,
                model=request.model,
                body_bytes=request.length,
                asked_output=request.asked_output,
                choices=request.choices,
                inputs=request.inputs,
                text_only=request.text_only,
            )
            answer = admit_known(call, key, self.snapshot, now)
            if isinstance(answer, Deny):
                return of_rule(answer, head.request_id)
            return await self._make(head, request, answer, milliseconds(now))
        except InvalidCall as error:
            return refuse(400, error.code, error.message, head.request_id)
        except LedgerUnavailable:
            message = "the balance is not known now: try again in a moment"
            return refuse(503, "balance_unknown", message, head.request_id)
        except CredentialsUnavailable as error:
            # Which Secret is the admin's business, not the caller's.
            log.error("credentials.unavailable", request_id=head.request_id, error=str(error))
            message = "the provider's credentials are not available: tell the cluster's admin"
            return refuse(503, "credentials_unavailable", message, head.request_id)

    async def _make(
        self, head: RequestHead, request: RequestBody, grant: Allow, now: int
    ) -> Route | ImmediateResponse:
        """Hold and count what was granted, and send the call on its way; or undo it all."""
        request_id, account = head.request_id, grant.service.account
        if grant.hold is not None and not await self.leases.hold(request_id, account, grant.hold):
            message = "the balance does not cover what the call may cost: lower max_tokens, or top it up"
            return refuse(402, "insufficient_balance", message, request_id)
        self.spend.authorize(request_id, account, grant.committed, grant.service.model, grant.free_tokens)
        taken: tuple[Consumption, ...] = ()
        try:
            if grant.limit_requests:
                answer = await self.counters.take(grant.limit_requests, now)
                refusal = limit_refusal(answer.limit_statuses)
                if refusal is not None:
                    self._give_back(request_id)
                    return of_rule(refusal, request_id)
                taken = answer.taken
            route = self.snapshot.route(grant.service.model)
            assert route is not None, "a model that was granted is there"
            secret = None if route.provider is None else route.provider.secret
            token = None if secret is None else await self.credentials.token(secret)
            forward = self._forward(head, request, grant, taken, route, token)
        except BaseException:
            self._give_back(request_id)
            self.settlement.give_back(taken, now)
            raise
        self.settlement.admitted(request_id, taken)
        _FORWARDED.inc()
        return forward

    def _give_back(self, request_id: str) -> None:
        """What was held and committed for a call that is not made."""
        self.leases.release([request_id])
        self.spend.void(request_id)

    def _forward(
        self,
        head: RequestHead,
        request: RequestBody,
        grant: Allow,
        taken: tuple[Consumption, ...],
        route: ModelUpstream,
        token: str | None,
    ) -> Route:
        """The call on its way; `token` is the provider's, if it wants one."""
        headers, each_event = {"accept-encoding": "identity"}, route.continuous_usage
        if route.provider is not None:
            upstream, tls = route.provider.upstream, route.provider.tls
            path = route.provider.base_path + request.endpoint.operation
            if token is not None:
                headers["authorization"] = f"Bearer {token}"
                if request.endpoint is MESSAGES:
                    headers["x-api-key"] = token
        else:
            service = grant.service
            name = dedicated_backend_name(service.key) if service.dedicated else route.backend
            upstream, tls, path = self.backend_address(name, route.port), False, request.endpoint.path
        labels = labels_of(grant, request, taken, continuous=each_event and request.asked_for_usage)
        labels["source"] = self.leases.source
        return Route(
            upstream=upstream,
            tls=tls,
            path=path,
            body=request.rewritten(
                route.served_name, continuous_usage=each_event, max_output=_per_answer(grant, request)
            ),
            set_headers=headers,
            remove_headers=removed_headers(head.headers, headers),
            labels=labels,
            redaction=request.redaction(continuous_usage=each_event),
        )

    def _caller(self, head: RequestHead) -> Call:
        """The call, as far as its head tells."""
        return Call(key_hash(head) or _NO_KEY, address_of(head, self.trusted_proxies), "", 0, None)

    def _elsewhere(self, head: RequestHead, path: str) -> ImmediateResponse:
        """What is at the paths that are not forwarded."""
        if path == MODELS_PATH or path.startswith(f"{MODELS_PATH}/"):
            return self._list_models(head, path)
        known = ", ".join((*ENDPOINTS, MODELS_PATH))
        message = f"there is nothing at this path: the gateway serves {known}"
        return refuse(404, "unknown_url", message, head.request_id)

    def _list_models(self, head: RequestHead, path: str) -> ImmediateResponse:
        """GET /v1/models, and one of them: what the key may call, and whether it is active now."""
        if head.method not in ("GET", "HEAD"):
            message = f"{path} takes GET alone"
            return refuse(405, "method_not_allowed", message, head.request_id, {"allow": "GET, HEAD"})
        check_headers(head)
        caller = self._caller(head)
        key = identify(caller, self.snapshot, self.clock())
        if isinstance(key, Deny):
            return of_rule(key, head.request_id)

        def named(name: str) -> ServicePolicy | Deny:
            return look_up(msgspec.structs.replace(caller, model=name), key, self.snapshot)

        if path != MODELS_PATH:
            found = named(path.removeprefix(f"{MODELS_PATH}/"))
            if isinstance(found, Deny):
                return of_rule(found, head.request_id)
            return _answer(head, _model(found))
        names = [service.key.name for service in self.snapshot.services_in(key.key.namespace)]
        listed = [_model(found) for found in map(named, names) if isinstance(found, ServicePolicy)]
        return _answer(head, {"object": "list", "data": listed})


def _per_answer(grant: Allow, request: RequestBody) -> int | None:
    """The bound that is written into a body without one: what is held is what may be used.

    An upstream keeps to its context by itself, and refuses a bound as large: no prompt fits beside it.
    """
    if grant.hold is None or grant.output_bound is None:
        return None
    bound = grant.output_bound // request.choices
    return None if bound == grant.model.context_tokens else bound


def _model(service: ServicePolicy) -> dict[str, Any]:
    """A service in OpenAI's words, and whether it is active now."""
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
    """Addresses of backends as the cluster's DNS has them."""

    def address(name: str, port: int) -> str:
        return f"{name}.{namespace}.svc:{port}"

    return address
