"""The Handler: from the head and body of a call to where it goes, or why it does not.

    head -> who calls, or why not -> body -> admit (pure) -> hold money -> count -> forward

It holds no rule of its own: those are in `farebox.domain.admission.rules`. A call that is refused after money
was held gets it back; what follows a call's end is in `settling`.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import msgspec
import structlog

from farebox.domain.admission.addresses import Network
from farebox.domain.admission.cases import Grant, Refusal
from farebox.domain.admission.rate_limits import Taken
from farebox.domain.admission.rules import admit_known, identify, limit_refusal, look_up
from farebox.domain.admission.types import Call, ServiceTerms
from farebox.errors import InvalidCall, LedgerUnavailable
from farebox.gateway.convert import ModelRoute
from farebox.gateway.credentials import Credentials, CredentialsUnavailable
from farebox.gateway.interface import Decide, Forward, Head, Refuse
from farebox.gateway.ratelimit.memory import Counters
from farebox.gateway.request.body import Body, parse
from farebox.gateway.request.endpoints import ENDPOINTS, MESSAGES, MODELS_PATH, Endpoint
from farebox.gateway.request.errors import of_rule, refuse
from farebox.gateway.request.headers import address_of, check_headers, key_hash, removed_headers
from farebox.gateway.settlement import Settling, labels_of, milliseconds
from farebox.gateway.snapshot import GatewayView
from farebox.gateway.spend.credit_leases import Budgets
from farebox.gateway.spend.tracker import Purse
from farebox.kube.names import dedicated_backend_name
from farebox.metrics import GATEWAY_DECISIONS

log = structlog.get_logger(__name__)
_FORWARDED: Final = GATEWAY_DECISIONS.labels("")
_NO_KEY: Final = ""
_encode: Final = msgspec.json.Encoder().encode


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


@dataclass
class Gate:
    """Decides calls. `handle` is the transport's Handler.

    Args:
        backend_address: "host:port" of a backend, from the name of its Service and its port.
        trusted_proxies: whose X-Forwarded-For is believed.
        ready: set once the cluster was read; calls before are refused with 503.
    """

    view: GatewayView
    purse: Purse
    budgets: Budgets
    counters: Counters
    settling: Settling
    credentials: Credentials
    backend_address: Callable[[str, int], str]
    trusted_proxies: Sequence[Network] = ()
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    clock: Callable[[], datetime] = utc_now

    def handle(self, head: Head) -> Refuse | Decide:
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
            known_key = identify(caller, self.view, self.clock())
            if isinstance(known_key, Refusal):
                return of_rule(known_key, head.request_id)
        except InvalidCall as error:
            return refuse(400, error.code, error.message, head.request_id)
        return partial(self._decide, head, endpoint, caller)

    async def _decide(
        self, head: Head, endpoint: Endpoint, caller: Call, body: bytes | None
    ) -> Forward | Refuse:
        """Decide the same call with its body (B13-B18)."""
        try:
            now = self.clock()
            # Asked again: while the body came, the key may have been disabled, or expired (B14).
            key = identify(caller, self.view, now)
            if isinstance(key, Refusal):
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
            answer = admit_known(call, key, self.view, now)
            if isinstance(answer, Refusal):
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

    async def _make(self, head: Head, request: Body, grant: Grant, now: int) -> Forward | Refuse:
        """Hold and count what was granted, and send the call on its way; or undo it all."""
        request_id, account = head.request_id, grant.service.account
        if grant.hold is not None and not await self.budgets.hold(request_id, account, grant.hold):
            message = "the balance does not cover what the call may cost: lower max_tokens, or top it up"
            return refuse(402, "insufficient_balance", message, request_id)
        self.purse.commit(request_id, account, grant.committed, grant.service.model, grant.free_tokens)
        taken: tuple[Taken, ...] = ()
        try:
            if grant.demands:
                answer = await self.counters.take(grant.demands, now)
                refusal = limit_refusal(answer.standings)
                if refusal is not None:
                    self._take_back(request_id)
                    return of_rule(refusal, request_id)
                taken = answer.taken
            route = self.view.route(grant.service.model)
            assert route is not None, "a model that was granted is there"
            secret = None if route.provider is None else route.provider.secret
            token = None if secret is None else await self.credentials.token(secret)
            forward = self._forward(head, request, grant, taken, route, token)
        except BaseException:
            self._take_back(request_id)
            self.settling.give_back(taken, now)
            raise
        self.settling.admitted(request_id, taken)
        _FORWARDED.inc()
        return forward

    def _take_back(self, request_id: str) -> None:
        """What was held and committed for a call that is not made."""
        self.budgets.settle([request_id])
        self.purse.release(request_id)

    def _forward(
        self,
        head: Head,
        request: Body,
        grant: Grant,
        taken: tuple[Taken, ...],
        route: ModelRoute,
        token: str | None,
    ) -> Forward:
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
        labels["source"] = self.budgets.source
        return Forward(
            upstream=upstream,
            tls=tls,
            path=path,
            body=request.rewritten(
                route.served_name, continuous_usage=each_event, max_output=_per_answer(grant, request)
            ),
            set_headers=headers,
            remove_headers=removed_headers(head.headers, headers),
            labels=labels,
            hiding=request.hiding(continuous_usage=each_event),
        )

    def _caller(self, head: Head) -> Call:
        """The call, as far as its head tells."""
        return Call(key_hash(head) or _NO_KEY, address_of(head, self.trusted_proxies), "", 0, None)

    def _elsewhere(self, head: Head, path: str) -> Refuse:
        """What is at the paths that are not forwarded."""
        if path == MODELS_PATH or path.startswith(f"{MODELS_PATH}/"):
            return self._list_models(head, path)
        known = ", ".join((*ENDPOINTS, MODELS_PATH))
        message = f"there is nothing at this path: the gateway serves {known}"
        return refuse(404, "unknown_url", message, head.request_id)

    def _list_models(self, head: Head, path: str) -> Refuse:
        """GET /v1/models, and one of them: what the key may call, and whether it is active now."""
        if head.method not in ("GET", "HEAD"):
            message = f"{path} takes GET alone"
            return refuse(405, "method_not_allowed", message, head.request_id, {"allow": "GET, HEAD"})
        check_headers(head)
        caller = self._caller(head)
        key = identify(caller, self.view, self.clock())
        if isinstance(key, Refusal):
            return of_rule(key, head.request_id)

        def named(name: str) -> ServiceTerms | Refusal:
            return look_up(msgspec.structs.replace(caller, model=name), key, self.view)

        if path != MODELS_PATH:
            found = named(path.removeprefix(f"{MODELS_PATH}/"))
            if isinstance(found, Refusal):
                return of_rule(found, head.request_id)
            return _answer(head, _model(found))
        names = [service.key.name for service in self.view.services_in(key.key.namespace)]
        listed = [_model(found) for found in map(named, names) if isinstance(found, ServiceTerms)]
        return _answer(head, {"object": "list", "data": listed})


def _per_answer(grant: Grant, request: Body) -> int | None:
    """The bound that is written into a body without one: what is held is what may be used.

    An upstream keeps to its context by itself, and refuses a bound as large: no prompt fits beside it.
    """
    if grant.hold is None or grant.output_bound is None:
        return None
    bound = grant.output_bound // request.choices
    return None if bound == grant.model.context_tokens else bound


def _model(service: ServiceTerms) -> dict[str, Any]:
    """A service in OpenAI's words, and whether it is active now."""
    created = service.created_at
    return {
        "id": service.key.name,
        "object": "model",
        "created": 0 if created is None else int(created.timestamp()),
        "owned_by": service.key.namespace,
        "active": not service.inactive,
    }


def _answer(head: Head, value: Any) -> Refuse:
    headers = {"content-type": "application/json", "x-request-id": head.request_id}
    return Refuse(200, headers, b"" if head.method == "HEAD" else _encode(value))


def service_address(namespace: str) -> Callable[[str, int], str]:
    """Addresses of backends as the cluster's DNS has them."""

    def address(name: str, port: int) -> str:
        return f"{name}.{namespace}.svc:{port}"

    return address
