"""The gateway's handler with all real parts except the network, and objects as the API server sends them."""

import asyncio
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from farebox.domain.admission.addresses import Network
from farebox.domain.billing.coverage import CallTokens
from farebox.domain.billing.money import NANO_PER_UNIT, Nano
from farebox.domain.keys import ObjectKey
from farebox.gateway.convert import SecretRef
from farebox.gateway.credentials import CredentialsUnavailable
from farebox.gateway.handler import Handler
from farebox.gateway.interface import ImmediateResponse, RequestHead, Route
from farebox.gateway.ratelimit.base import Counters
from farebox.gateway.ratelimit.memory import MemoryCounters
from farebox.gateway.settlement import Settlement
from farebox.gateway.snapshot import GatewaySnapshot
from farebox.gateway.spend.credit_leases import CreditLeases
from farebox.gateway.spend.tracker import SpendTracker
from farebox.kube.store import Store
from farebox.meterapi.types import AccountBalance, CreditLease, CreditLeaseRequest

JSONObject = dict[str, Any]
NOW = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
ACCOUNT = ObjectKey("billing", "acme")
TOKEN = "fbx_" + "a" * 43
OTHER_TOKEN = "fbx_" + "b" * 43
UNIT = NANO_PER_UNIT

_VERSIONS = itertools.count(1)
"""Each object is newer than those before it, as the stores take only newer ones."""


def obj(kind: str, name: str, spec: JSONObject, namespace: str = "", **status: Any) -> JSONObject:
    """An object as the API server sends it."""
    metadata = {"name": name, "uid": name, "resourceVersion": str(next(_VERSIONS)), "generation": 1}
    if namespace:
        metadata["namespace"] = namespace
    return {
        "apiVersion": "farebox.dev/v1alpha1",
        "kind": kind,
        "metadata": metadata,
        "spec": spec,
        "status": status,
    }


def model(name: str = "qwen3-8b", **spec: Any) -> JSONObject:
    """A model on this cluster; calls of it cost 500 and 1500 nano-units a token."""
    template = {"spec": {"containers": [{"name": "server", "image": "vllm"}]}}
    prices = {
        "currency": "USD",
        "tiers": [{"input": "0.500", "cachedInput": "0.050", "output": "1.500"}],
    }
    given = {
        "servedName": "Qwen/Qwen3-8B",
        "serving": {"deployment": {"port": 8000, "template": template}},
        "prices": prices,
        "limits": {"maxOutputTokens": 8192},
    }
    return obj("Model", name, given | spec)


def external(name: str = "remote", base_url: str = "https://api.example.com/v1", **ref: Any) -> JSONObject:
    """A model of a provider elsewhere."""
    serving = {"external": {"baseURL": base_url, **ref}}
    return model(name, servedName="gpt-9", serving=serving)


def serving(status: str = "True", reason: str = "Serving") -> list[JSONObject]:
    """The condition that says whether calls are accepted."""
    since = "2026-02-01T00:00:00Z"
    return [
        {"type": "Serving", "status": status, "reason": reason, "message": "", "lastTransitionTime": since}
    ]


def service(name: str = "chat", namespace: str = "team-a", **given: Any) -> JSONObject:
    """A running pay-as-you-go service; `status` replaces all of its status."""
    status = given.pop("status", {"phase": "Running", "conditions": serving()})
    spec = {
        "modelRef": {"name": "qwen3-8b"},
        "billingAccountRef": {"name": "acme", "namespace": "billing"},
        "postpaid": True,
    }
    return obj("InferenceService", name, spec | given, namespace, **status)


def api_key(name: str = "ci", namespace: str = "team-a", token: str = TOKEN, **spec: Any) -> JSONObject:
    """A key with a hash."""
    key_hash = hashlib.sha256(token.encode()).hexdigest()
    return obj(
        "APIKey", name, {"services": {"all": True}} | spec, namespace, keyHash=key_hash, prefix=token[:8]
    )


def account(enforcement: str = "Soft") -> JSONObject:
    """The account that pays."""
    return obj("BillingAccount", "acme", {"currency": "USD", "enforcement": enforcement}, "billing")


def balance(nano: int, sequence: int = 1, credit: int = 0) -> AccountBalance:
    """The account as the meter has it."""
    return AccountBalance(ACCOUNT, "USD", Nano(nano), Nano(credit), sequence)


class Clock:
    """A time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now

    def monotonic(self) -> float:
        """Seconds."""
        return (self.now - NOW).total_seconds() + 1000.0

    def pass_(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)


class RealTime(Clock):
    """The time as it is: Envoy's log has no other."""

    def __call__(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


class Tokens:
    """Providers' tokens without a cluster; `tests/gateway/test_cluster.py` reads real Secrets."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    async def token(self, ref: SecretRef) -> str:
        if ref.name not in self.known:
            raise CredentialsUnavailable(f"Secret farebox-models/{ref.name} cannot be read: HTTP 404")
        return self.known[ref.name]


class RecordedLeases(CreditLeases):
    """Credit leases that remember the amount of every hold, by the id of the call."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.amounts: dict[str, int] = {}

    async def hold(self, request_id: str, account: ObjectKey, amount: Nano) -> bool:
        self.amounts[request_id] = amount
        return await super().hold(request_id, account, amount)


@dataclass
class Harness:
    """A handler with a service "chat" of "team-a", its key, and a balance of 5 USD."""

    counters: Counters = field(default_factory=MemoryCounters)
    trusted: tuple[Network, ...] = ()
    clock: Clock = field(default_factory=Clock)
    tokens: Tokens = field(default_factory=Tokens)

    def __post_init__(self) -> None:
        self.spend = SpendTracker(max_age=300, clock=self.clock.monotonic)
        self.snapshot = GatewaySnapshot(self.spend)
        self.leases = RecordedLeases("gateway-0", self._claim, self.clock.monotonic)
        self.settlement = Settlement(self.snapshot, self.spend, self.leases, self.counters, self.clock)
        self.handler = Handler(
            snapshot=self.snapshot,
            spend=self.spend,
            leases=self.leases,
            counters=self.counters,
            settlement=self.settlement,
            credentials=self.tokens,  # type: ignore[arg-type]
            backend_address=lambda name, port: f"{name}.test:{port}",
            trusted_proxies=self.trusted,
            clock=self.clock,
        )
        self.handler.ready.set()
        self.requests = 0
        self.put(model(), service(), api_key(), account())
        self.report_balance(5 * UNIT)

    def put(self, *objects: JSONObject) -> None:
        """Put objects into the snapshot, as watches do."""
        stores: dict[str, Store[Any]] = {
            "Model": self.snapshot.models,
            "InferenceService": self.snapshot.services,
            "APIKey": self.snapshot.keys,
            "BillingAccount": self.snapshot.accounts,
        }
        for each in objects:
            newer = each["metadata"] | {"resourceVersion": str(next(_VERSIONS))}
            stores[each["kind"]].put(each | {"metadata": newer})

    def delete_key(self, namespace: str, name: str) -> None:
        """The deletion of an APIKey, as a watch reports it."""
        self.snapshot.keys.remove(ObjectKey(namespace, name), next(_VERSIONS))

    def report_balance(self, nano: int, sequence: int = 1, credit: int = 0) -> None:
        """Report a balance of `nano` to the spend tracker, as a page of the feed does."""
        self._ledger_has = nano + credit
        self.spend.update([balance(nano, sequence, credit)], [], True, self.clock.monotonic())

    async def _claim(self, claim: CreditLeaseRequest) -> CreditLease:
        """The ledger's part for one gateway that is alone and is never charged."""
        granted = max(0, min(claim.amount, self._ledger_has))
        return CreditLease(claim.account, Nano(granted), Nano(0), NOW + timedelta(hours=1))

    def head(self, path: str = "/v1/chat/completions", method: str = "POST", **given: Any) -> RequestHead:
        """The head of a call with the key; headers by `headers`, others by name."""
        self.requests += 1
        headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
        headers |= given.pop("headers", {})
        headers = {name: value for name, value in headers.items() if value is not None}
        return RequestHead(
            method=method,
            path=path,
            headers=headers,
            repeated=given.get("repeated", frozenset()),
            peer=given.get("peer", "10.0.0.7"),
            request_id=given.get("request_id", f"req-{self.requests}"),
        )

    async def call(self, body: Any = None, **given: Any) -> Route | ImmediateResponse:
        """A call; `body` is a chat for "chat" unless it is given, as JSON or as bytes."""
        if body is None:
            body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100}
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.decide(self.head(**given), raw)

    async def decide(self, head: RequestHead, body: bytes | None) -> Route | ImmediateResponse:
        """Decide a call by its head, and with its body if the handler needs it."""
        first = self.handler.handle(head)
        return first if isinstance(first, ImmediateResponse) else await first(body)

    async def forwarded(self, body: Any = None, **given: Any) -> Route:
        """The same; fails if it is refused."""
        answer = await self.call(body, **given)
        assert isinstance(answer, Route), answer
        return answer

    async def refused(self, body: Any = None, **given: Any) -> tuple[int, JSONObject, Mapping[str, str]]:
        """Status, error and headers; fails if the call is forwarded."""
        answer = await self.call(body, **given)
        assert isinstance(answer, ImmediateResponse), answer
        error = json.loads(answer.body)["error"]
        assert set(error) == {"type", "code", "message", "source", "request_id"}
        assert error["request_id"] == f"req-{self.requests}"
        return answer.status, error, answer.headers

    async def end(self, forward: Route, used: tuple[int, int, int] | None, request_id: str = "") -> None:
        """The call has ended, and all that follows is done. `used`: input, cached input, output."""
        request_id = request_id or f"req-{self.requests}"
        tokens = None if used is None else CallTokens(input=used[0], cached_input=used[1], output=used[2])
        self.settlement.settle(request_id, self.clock(), forward.labels, tokens)
        await self.settlement.correct()
        await asyncio.sleep(0)
