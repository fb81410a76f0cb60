"""How sharp the gateway's line of money is: real cluster, operator, meter, and gateway; only pods are played.

cutoff: usage takes an account below zero; from then until the first call that is refused. overshoot: 64
clients call until nothing is served any more; what the account then has below zero.
"""

import asyncio
import base64
import socket
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farebox.domain.billing.money import NANO_PER_UNIT, parse_amount
from farebox.kube.names import core_path
from tests.support.api import manifest, path_of
from tests.support.gateway import Gateway
from tests.support.ports import free_port
from tests.support.stack import AUDIENCE, SYSTEM
from tests.support.waiting import wait_for
from tests.tools.bench.gateway_targets import start
from tests.tools.bench.loading import load, request
from tests.tools.bench.report import Report, percentile
from tests.tools.bench.world import CHARGE, MODEL, World, open_world, progress

CUTOFFS = 100
CLIENTS = 64
RACES = 5
_RACE_SECONDS = 3.0
_MAX_TOKENS = 20
_NAMESPACE = "bench-money"
_SECONDS = 60.0
_PAUSE = 0.001
"""Between two calls of the client that waits to be refused."""


async def measure(report: Report, directory: Path, program: Path, scale: float) -> None:
    """All of it."""
    async with open_world() as world, AsyncExitStack() as stack:
        upstream = free_port()
        start(stack, [str(program), "upstream", str(upstream)], directory / "money-upstream.log", upstream)
        await world.namespace(_NAMESPACE)
        gateway = await asyncio.to_thread(world.stack.start_gateway, f"127.0.0.1:{upstream}")
        limits = {"contextTokens": 4096, "maxOutputTokens": _MAX_TOKENS}
        await asyncio.to_thread(
            world.stack.api.patch, path_of("Model", name=MODEL), {"spec": {"limits": limits}}
        )
        await _cutoffs(report, world, gateway, max(3, round(CUTOFFS * scale)))
        for enforcement in ("Soft", "Hard"):
            await _overshoot(report, world, gateway, program, enforcement, max(1, round(RACES * scale)))


@dataclass
class _Payer:
    """An account, its service, and a key."""

    world: World
    gateway: Gateway
    name: str
    token: str

    @property
    def port(self) -> int:
        return int(self.gateway.url.rpartition(":")[2])

    @classmethod
    async def make(
        cls, world: World, gateway: Gateway, name: str, enforcement: str, balance: int
    ) -> "_Payer":
        """It has money, and its calls are served."""
        spec = {"currency": "USD", "enforcement": enforcement, "defaultServices": {"models": "None"}}
        await world.bare.create(
            path_of("BillingAccount", _NAMESPACE), manifest("BillingAccount", name, spec, _NAMESPACE)
        )
        await world.top_up(_NAMESPACE, name, balance)
        await world.services(_NAMESPACE, name, [name], dedicated=False)
        key = manifest("APIKey", name, {"services": {"names": [name]}}, _NAMESPACE)
        await world.bare.create(path_of("APIKey", _NAMESPACE), key)
        made = cls(world, gateway, name, await asyncio.to_thread(_token, world, name))
        await made.served()
        return made

    async def top_up(self, amount: int) -> None:
        """Money, and calls are served again."""
        await self.world.top_up(_NAMESPACE, self.name, amount)
        await self.served()

    async def served(self) -> None:
        """Returns when a call is served."""

        def look() -> bool:
            with _Line(self) as line:
                status = line.call()
            assert status == 200, status
            return True

        await asyncio.to_thread(wait_for, f"calls of {self.name} are served", look, _SECONDS)

    def balance(self) -> int:
        """In nano-units, by the ledger."""
        stack = self.world.stack
        token = stack.cluster.service_account_token(SYSTEM, "farebox-operator", audience=AUDIENCE)
        answer = stack.call_meter("GET", f"/v1/accounts/{_NAMESPACE}/{self.name}", token=token)
        return parse_amount(answer["balance"])

    async def settled(self) -> int:
        """The balance, once usage has stopped to come."""
        last, same_since = None, time.monotonic()
        while True:
            balance = await asyncio.to_thread(self.balance)
            if balance != last:
                last, same_since = balance, time.monotonic()
            elif time.monotonic() - same_since > 2.0:
                return balance
            await asyncio.sleep(0.25)


class _Line:
    """One connection to the gateway that makes one call at a time."""

    def __init__(self, payer: _Payer) -> None:
        self._request = request(payer.token, payer.name, "json", _MAX_TOKENS).encode()
        self._socket = socket.create_connection(("127.0.0.1", payer.port), timeout=30)

    def __enter__(self) -> "_Line":
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()

    def call(self) -> int:
        """The status of one call."""
        self._socket.sendall(self._request)
        answer = b""
        while True:
            answer += self._socket.recv(65536)
            head, found, body = answer.partition(b"\r\n\r\n")
            if found and len(body) >= int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
                return int(head[9:12])


async def _cutoffs(report: Report, world: World, gateway: Gateway, rounds: int) -> None:
    payer = await _Payer.make(world, gateway, "cutoff", "Soft", CHARGE // 2)
    since_sent, since_answer = [], []
    for number in range(rounds):
        progress(f"cutoff {number + 1} of {rounds}")
        watching = asyncio.create_task(asyncio.to_thread(_until_refused, payer))
        sent = time.perf_counter()
        await world.charge(f"{_NAMESPACE}/{payer.name}")
        answered = time.perf_counter()
        refused_at = await watching
        since_sent.append((refused_at - sent) * 1000)
        since_answer.append(max(0.0, refused_at - answered) * 1000)
        balance = await payer.settled()
        await payer.top_up(-balance // NANO_PER_UNIT + CHARGE // 2)
    for percent in (50, 99):
        upper, lower = percentile(since_sent, percent), percentile(since_answer, percent)
        goal, met = ("under 100 ms", upper < 100) if percent == 99 else (None, None)
        what = f"cutoff p{percent}, from sending the last usage ({rounds} rounds)"
        report.add(what, upper, "ms", goal=goal, met=met)
        report.add(f"cutoff p{percent}, from the ledger's answer to it", lower, "ms")


def _until_refused(payer: _Payer) -> float:
    """Call until a call is refused; when its answer came."""
    with _Line(payer) as line:
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            status = line.call()
            if status == 402:
                return time.perf_counter()
            assert status == 200, status
            time.sleep(_PAUSE)
    raise TimeoutError("no call was refused")


async def _overshoot(
    report: Report, world: World, gateway: Gateway, program: Path, enforcement: str, races: int
) -> None:
    """Races for the last cent: money for some hundred calls, and CLIENTS who want it."""
    name = enforcement.lower()
    payer = await _Payer.make(world, gateway, name, enforcement, CHARGE)
    text = request(payer.token, name, "json", _MAX_TOKENS)
    worst, price, served = 0, 0, 0
    for number in range(races):
        progress(f"overshoot, {enforcement}: race {number + 1} of {races}")
        before = await payer.settled()
        result = await load(program, "closed", payer.port, text, CLIENTS, _RACE_SECONDS)
        calls = result.statuses.get(200, 0)
        after = await payer.settled()
        assert result.statuses.get(402), f"the money was not spent: {result.statuses}"
        if calls:
            price = (before - after) // calls
        worst, served = max(worst, -after), served + calls
        await payer.top_up(max(0, -after) // NANO_PER_UNIT + CHARGE)
    in_calls = worst / price if price else 0.0
    goal, met = ("0", worst <= 0) if enforcement == "Hard" else (f"at most {CLIENTS}", in_calls <= CLIENTS)
    what = f"overshoot, {enforcement}, worst of {races} races of {CLIENTS} clients"
    report.add(what, in_calls, "calls", goal=goal, met=met)
    report.add(f"overshoot, {enforcement}, served in all races", served, "calls")


def _token(world: World, name: str) -> str:
    """The token of an APIKey, as its tenant reads it."""

    def look() -> str:
        status: dict[str, Any] = world.stack.api.get(path_of("APIKey", _NAMESPACE, name)).get("status", {})
        assert status.get("secretName"), status
        secret = world.stack.api.get(core_path("secrets", _NAMESPACE, status["secretName"]))
        return base64.b64decode(secret["data"]["api-key"]).decode()

    return wait_for(f"the Secret of APIKey {name}", look, _SECONDS)
