"""A plane with Farebox on it, filled quickly: models, accounts with money, thousands of services.

It makes objects as users would, and waits until the operator is through with them; it measures nothing.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import yaml

from tests.support.api import manifest, path_of
from tests.support.processes import Process
from tests.support.stack import BACKENDS, REPOSITORY, SYSTEM, Stack, usage_event
from tests.tools.bench.bare import Bare, Call
from tests.tools.bench.process import Metrics
from tests.tools.plane import Plane

JSONObject = dict[str, Any]

MODEL = "bench"
MODELS_NAMESPACE = BACKENDS
DEPLOYMENTS = f"/apis/apps/v1/namespaces/{BACKENDS}/deployments"
SERVICES = path_of("InferenceService")
CHARGE = 1000
"""What one `charge` takes from an account, in units of its currency."""

_TOKENS_PER_UNIT = 10
_PRICE = "100000.000"
_QUIET_SECONDS = 1.5
_POLL_SECONDS = 0.5
_GIVE_UP_SECONDS = 600.0


class World:
    """Farebox, running on a plane, and fast hands."""

    def __init__(self, stack: Stack, bare: Bare) -> None:
        self.stack = stack
        self.bare = bare
        self._topups = 0

    @property
    def operator(self) -> Process:
        """The operator that was started last."""
        return self.stack.operator

    async def model(self, name: str = MODEL) -> None:
        """A model whose pods look like those of the samples, and whose input costs 0.1 a token."""
        samples = yaml.safe_load_all((REPOSITORY / "manifests/samples/catalogue.yaml").read_text())
        serving = next(
            sample["spec"]["serving"] for sample in samples if "deployment" in sample["spec"]["serving"]
        )
        price = {"input": _PRICE, "cachedInput": _PRICE, "output": _PRICE}
        spec = {"serving": serving, "prices": {"currency": "USD", "tiers": [price]}}
        await self.bare.create(path_of("Model"), manifest("Model", name, spec))

    async def namespace(self, name: str) -> None:
        """A namespace."""
        await self.bare.create("/api/v1/namespaces", {"metadata": {"name": name}})

    async def account(self, namespace: str, name: str, balance: int = 0) -> None:
        """An account without Default services; with a TopUp if it is to have a balance."""
        spec = {"currency": "USD", "defaultServices": {"models": "None"}}
        await self.bare.create(
            path_of("BillingAccount", namespace), manifest("BillingAccount", name, spec, namespace)
        )
        if balance:
            await self.top_up(namespace, name, balance)

    async def top_up(self, namespace: str, account: str, amount: int) -> str:
        """Apply a TopUp; returns its name."""
        body = self.topup(namespace, account, amount)
        await self.bare.create(path_of("TopUp", namespace), body)
        return str(body["metadata"]["name"])

    def topup(self, namespace: str, account: str, amount: int) -> JSONObject:
        """A TopUp with a name and a reference of its own."""
        self._topups += 1
        name = f"topup-{self._topups}"
        spec = {
            "billingAccountRef": {"name": account},
            "amount": str(amount),
            "kind": "Payment",
            "reference": name,
        }
        return manifest("TopUp", name, spec, namespace)

    async def services(
        self,
        namespace: str,
        account: str,
        names: Sequence[str],
        dedicated: bool = True,
        postpaid: bool = True,
    ) -> None:
        """Services on the bench's model, made by 64 connections."""
        spec = {
            "modelRef": {"name": MODEL},
            "billingAccountRef": {"name": account},
            "postpaid": postpaid,
            "dedicated": dedicated,
        }
        path = path_of("InferenceService", namespace)
        await self.bare.send(
            [Call("POST", path, manifest("InferenceService", name, spec, namespace))] for name in names
        )

    async def charge(self, *services: str) -> None:
        """Usage of CHARGE units for each service (namespace/name), posted as one batch."""
        events = [usage_event(service, MODEL, CHARGE * _TOKENS_PER_UNIT) for service in services]
        for event in events:
            event["data"]["apiKey"] = event["data"]["apiKey"] or "bench"
        result = await asyncio.to_thread(self.stack.post_usage, events)
        assert result["accepted"] == len(events), result

    async def at_rest(
        self, operator: Process | None = None, quiet_seconds: float = _QUIET_SECONDS
    ) -> Metrics:
        """Wait until the operator has nothing to do and wrote nothing for a while; returns its metrics."""
        operator = operator or self.operator
        quiet_since, writes = time.monotonic(), -1.0
        while True:
            metrics = await asyncio.to_thread(Metrics.of, operator)
            busy = metrics.total("workqueue_depth") > 0
            now, count = time.monotonic(), metrics.total("farebox_api_writes_total")
            if busy or count != writes:
                quiet_since, writes = now, count
            elif now - quiet_since > quiet_seconds:
                return metrics
            await asyncio.sleep(min(_POLL_SECONDS, quiet_seconds / 3))

    async def until(self, what: str, path: str, holds: Callable[[JSONObject], bool], count: int) -> None:
        """Wait until exactly `count` objects of a collection satisfy a condition, and the operator rests."""
        deadline = time.monotonic() + _GIVE_UP_SECONDS
        while True:
            await self.at_rest()
            found = sum(holds(item) for item in await self.bare.all(path))
            progress(f"{what}: {found:,} of {count:,}")
            if found == count:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{what}: {found} of {count} after {_GIVE_UP_SECONDS:.0f} s\n{self.operator.tail()}"
                )

    async def stop_operator(self) -> None:
        """End the operator that was started last, politely: it gives its Lease back."""
        await asyncio.to_thread(self.operator.stop)
        self.stack.operators.pop()

    async def start_operator(self) -> Process:
        """Start one and wait until it rests."""
        operator = await asyncio.to_thread(self.stack.start_operator)
        await self.at_rest(operator)
        return operator


@asynccontextmanager
async def open_world() -> AsyncIterator[World]:
    """A plane of its own with Farebox and a model on it; stopped and removed at the end."""
    plane = await asyncio.to_thread(Plane.start, None, 4)
    try:
        stack = await asyncio.to_thread(Stack.start, plane)
        try:
            async with await Bare.connect(plane.kubeconfig) as bare:
                world = World(stack, bare)
                await world.model()
                yield world
        finally:
            await asyncio.to_thread(stack.close)
    finally:
        await asyncio.to_thread(plane.stop)


def progress(text: str) -> None:
    """A line for the impatient."""
    print(f"  {text}", file=sys.stderr, flush=True)


def is_running(service: JSONObject) -> bool:
    """Running, with its one replica ready."""
    status = service.get("status") or {}
    return status.get("phase") == "Running" and status.get("readyReplicas") == 1


def is_stopped(service: JSONObject) -> bool:
    """Stopped, and its pods are gone."""
    status = service.get("status") or {}
    return status.get("phase") == "Stopped" and not status.get("replicas")


def operator_kubeconfig(world: World) -> Any:
    """The operator's own credentials: the limit is measured with the same rights and rate limits."""
    return world.stack.cluster.service_account_kubeconfig(SYSTEM, "farebox-operator")
