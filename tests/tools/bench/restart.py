"""restart: the operator starts with thousands of services at rest, and has nothing to write.

The limit is a bare LIST of the same objects (all kinds that the operator reads) with a JSON parse.
"""

import asyncio
import time
from collections.abc import Sequence

from farebox.controller.queue import Kind
from tests.support.api import path_of
from tests.tools.bench.bare import Bare, JSONObject
from tests.tools.bench.process import Metrics, cpu_seconds, peak_memory_mb
from tests.tools.bench.report import Report
from tests.tools.bench.world import (
    CHARGE,
    DEPLOYMENTS,
    MODELS_NAMESPACE,
    SERVICES,
    World,
    open_world,
    operator_kubeconfig,
)

SERVICES_AT_REST = 5000
_NAMESPACE = "bench"
_MEMORY_MB = 300.0
_POLL_SECONDS = 0.05
# Accounts, and what their services are: (name, has money, dedicated, share of all services).
_MIX = (
    ("shared-running", True, False, 0.4),
    ("shared-stopped", False, False, 0.2),
    ("dedicated-running", True, True, 0.2),
    ("dedicated-stopped", False, True, 0.2),
)


async def run(scale: float) -> Report:
    """The whole benchmark."""
    report = Report("restart", scale)
    async with open_world() as world:
        count = await _populate(world, max(10, round(SERVICES_AT_REST * scale)))
        await world.stop_operator()
        limit, objects = await _list_everything(world)
        started = time.monotonic()
        operator = await asyncio.to_thread(world.stack.start_operator)
        while not _reconciled(await asyncio.to_thread(Metrics.of, operator), count):  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
        seconds, cpu = time.monotonic() - started, cpu_seconds(operator.pid)
        metrics = await world.at_rest(operator)
        writes = metrics.total("farebox_api_writes_total")
        memory = peak_memory_mb(operator.pid)
    report.add(f"start to {count:,} services reconciled", seconds, "s", limit)
    report.add("writes", writes, "", None, "0", writes == 0)
    report.add("peak memory", memory, "MB", None, "< 300 MB", memory < _MEMORY_MB)
    report.add("operator's CPU", cpu, "s")
    report.details |= {"objects": objects, "writes": _writes(metrics)}
    return report


async def _populate(world: World, total: int) -> int:
    """Services of all sorts, brought to rest by the operator; returns how many."""
    await world.namespace(_NAMESPACE)
    made: list[tuple[str, bool, int]] = []
    for account, rich, dedicated, share in _MIX:
        count = round(total * share)
        await world.account(_NAMESPACE, account, CHARGE // 2)
        await world.services(_NAMESPACE, account, [f"{account}-{i:05d}" for i in range(count)], dedicated)
        made.append((account, rich, count))
    services = sum(count for _, _, count in made)
    await world.until(
        "services run", SERVICES, _settled({account: "Running" for account, _, _ in made}), services
    )
    await world.charge(*(f"{_NAMESPACE}/{account}-00000" for account, rich, _ in made if not rich))
    phases = {account: "Running" if rich else "Stopped" for account, rich, _ in made}
    await world.until("services are settled", SERVICES, _settled(phases), services)
    return services


def _settled(phases: dict[str, str]):  # type: ignore[no-untyped-def]
    def holds(service: JSONObject) -> bool:
        status = service.get("status") or {}
        phase = phases[service["spec"]["billingAccountRef"]["name"]]
        return status.get("phase") == phase and (status.get("replicas", 0) > 0) == (phase == "Running")

    return holds


def _reconciled(metrics: Metrics, services: int) -> bool:
    """Every service had its pass, and nothing waits."""
    passes = metrics.total("workqueue_work_duration_seconds_count", kind=Kind.SERVICE)
    return passes >= services and metrics.total("workqueue_depth") == 0


async def _list_everything(world: World) -> tuple[float, int]:
    """Seconds of bare lists of all kinds that the operator reads, one after another, and how many objects."""
    paths: Sequence[str] = [
        path_of(kind) for kind in ("InferenceService", "Model", "BillingAccount", "TopUp")
    ]
    backends = [DEPLOYMENTS, f"/api/v1/namespaces/{MODELS_NAMESPACE}/services"]
    objects = 0

    def count(_: JSONObject) -> None:
        nonlocal objects
        objects += 1

    async with await Bare.connect(operator_kubeconfig(world)) as bare:
        started = time.monotonic()
        for path in [*paths, *backends, "/api/v1/namespaces"]:
            await bare.each(path, count)
        return time.monotonic() - started, objects


def _writes(metrics: Metrics) -> dict[str, float]:
    return {
        dict(labels)["write"]: value
        for (name, labels), value in metrics.samples.items()
        if name == "farebox_api_writes_total"
    }
