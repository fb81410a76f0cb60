"""bulk: an account with thousands of running services goes overdue, and is topped up again.

The limit is a bare loop with 64 connections that sends the same writes to the same objects while the operator
is down. It is measured twice: blind (everything at once), and following (the last status of a service only
when its pods are there or gone, as nobody can write it sooner).
"""

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from tests.support.api import path_of
from tests.tools.bench.bare import CONNECTIONS, Bare, Call, patch
from tests.tools.bench.observer import Observer, observing
from tests.tools.bench.process import Metrics, cpu_seconds, peak_memory_mb
from tests.tools.bench.report import Report
from tests.tools.bench.world import (
    CHARGE,
    DEPLOYMENTS,
    SERVICES,
    World,
    is_running,
    is_stopped,
    open_world,
    operator_kubeconfig,
)

JSONObject = dict[str, Any]

SIZES = (500, 2000)
_NAMESPACE = "bench"
_ACCOUNT = "acme"
_MAX_TIMES_LIMIT = 2.0
_MAX_WRITES = 3.0
# Time per service may differ by this much between sizes before it counts as growing.
_GROWTH_SLACK = 1.25


@dataclass(frozen=True)
class Transition:
    """The way of all services from running to stopped, or back."""

    name: str
    replicas: int
    done: Callable[[JSONObject], bool]


STOP = Transition("stop", 0, is_stopped)
RESUME = Transition("resume", 1, is_running)


@dataclass(frozen=True)
class Outcome:
    """What one transition took, in seconds from its cause."""

    seconds: float
    last_scale: float
    last_arrival: float
    writes: float
    """Writes a service as the operator counts them, those of its account's and TopUp's status among them."""
    counted: float
    """Writes a service as the API server saw them: of services' status, and of their Deployments' scale."""
    cpu: float
    patches: list[JSONObject]
    """The status patches of a typical service, in order."""


@dataclass(frozen=True)
class Limits:
    """What the bare loop took for the same writes, in seconds."""

    blind: float
    following: float


async def run(scale: float) -> Report:
    """The whole benchmark."""
    report = Report("bulk", scale)
    per_service: dict[str, list[float]] = {STOP.name: [], RESUME.name: []}
    async with open_world() as world:
        await world.namespace(_NAMESPACE)
        await world.account(_NAMESPACE, _ACCOUNT, CHARGE // 2)
        made = 0
        for size in (max(2, round(size * scale)) for size in SIZES):
            await world.services(_NAMESPACE, _ACCOUNT, [f"service-{i:05d}" for i in range(made, size)])
            made = size
            await world.until("services run", SERVICES, is_running, size)
            await _measure_size(world, size, report, per_service)
        report.details["operator_peak_memory_mb"] = round(peak_memory_mb(world.operator.pid))
    for name, seconds in per_service.items():
        growth = seconds[-1] / seconds[0]
        goal = f"<= {_GROWTH_SLACK}"
        report.add(
            f"{name}: time a service, largest / smallest size",
            growth,
            "x",
            None,
            goal,
            growth <= _GROWTH_SLACK,
        )
    return report


async def _measure_size(world: World, size: int, report: Report, per_service: dict[str, list[float]]) -> None:
    stop = await _transition(world, STOP, size, lambda: world.charge(f"{_NAMESPACE}/service-00000"))
    resume = await _transition(world, RESUME, size, lambda: _top_up(world))
    await world.stop_operator()
    async with await Bare.connect(operator_kubeconfig(world)) as bare:
        deployments = await _deployments(world.bare)
        limits = {}
        for transition, outcome in ((STOP, stop), (RESUME, resume)):
            following = await _limit(world.bare, bare, transition, outcome, deployments, follow)
            limits[transition.name] = Limits(0.0, following)
        for transition, outcome in ((STOP, stop), (RESUME, resume)):
            blind = await _limit(world.bare, bare, transition, outcome, deployments, blindly)
            limits[transition.name] = Limits(blind, limits[transition.name].following)
    await world.start_operator()
    for transition, outcome in ((STOP, stop), (RESUME, resume)):
        _tell(report, transition.name, size, outcome, limits[transition.name])
        per_service[transition.name].append(outcome.seconds / size)


async def _top_up(world: World) -> None:
    await world.top_up(_NAMESPACE, _ACCOUNT, CHARGE)


async def _transition(world: World, transition: Transition, size: int, cause: Callable[[], Any]) -> Outcome:
    """Cause it, and wait until nothing moves any more."""
    operator = world.operator
    before, cpu = await world.at_rest(), cpu_seconds(operator.pid)
    generations = await _generations(world.bare)
    async with observing(world.bare, transition.replicas) as observer:
        await cause()
        await world.until(f"services {transition.name}", SERVICES, transition.done, size)
    used = cpu_seconds(operator.pid) - cpu
    after = await asyncio.to_thread(Metrics.of, operator)
    scaled = sum((await _generations(world.bare)).values()) - sum(generations.values())
    assert len(observer.arrived_at) == size, f"{len(observer.arrived_at)} of {size} Deployments arrived"
    return Outcome(
        seconds=observer.last_service_at - observer.started_at,
        last_scale=max(observer.scaled_at.values()) - observer.started_at,
        last_arrival=max(observer.arrived_at.values()) - observer.started_at,
        writes=sum(
            after.since(before, "farebox_api_writes_total", write=what) for what in ("status", "scale")
        )
        / size,
        counted=(len(observer.statuses) + scaled) / size,
        cpu=used / size,
        patches=_typical_patches(observer),
    )


async def _generations(bare: Bare) -> dict[str, int]:
    """Each scale write makes a Deployment's generation one higher."""
    generations: dict[str, int] = {}

    def note(item: JSONObject) -> None:
        generations[item["metadata"]["name"]] = item["metadata"]["generation"]

    await bare.each(DEPLOYMENTS, note)
    return generations


def _typical_patches(observer: Observer) -> list[JSONObject]:
    """The status patches of a service that had as many as most."""
    counts = observer.events_by_service()
    usual = round(median(counts.values()))
    name = next(name for name, count in counts.items() if count == usual)
    events = [json.loads(line) for line in observer.statuses if f'"name":"{name}",'.encode() in line]
    statuses = [event["object"]["status"] for event in events if event["object"]["metadata"]["name"] == name]
    # What the first of them changed is not known here; it wrote conditions and phase, so all is the nearest.
    return [statuses[0]] + [
        {field: value for field, value in after.items() if before.get(field) != value}
        | {field: None for field in before if field not in after}
        for before, after in itertools.pairwise(statuses)
    ]


async def _deployments(bare: Bare) -> dict[str, tuple[str, str]]:
    """The service (namespace, name) of each Deployment."""
    found: dict[str, tuple[str, str]] = {}

    def note(item: JSONObject) -> None:
        annotations = item["metadata"]["annotations"]
        found[item["metadata"]["name"]] = (
            annotations["farebox.dev/service-namespace"],
            annotations["farebox.dev/service-name"],
        )

    await bare.each(DEPLOYMENTS, note)
    return found


@dataclass(frozen=True)
class Writes:
    """What has to be written for one service: at once, and when its pods are there or gone."""

    first: tuple[Call, ...]
    last: Call


def _writes(transition: Transition, outcome: Outcome, deployment: str, service: tuple[str, str]) -> Writes:
    path = path_of("InferenceService", *service, subresource="status")
    *early, last = [patch(path, {"status": change}) for change in outcome.patches]
    scale = patch(f"{DEPLOYMENTS}/{deployment}/scale", {"spec": {"replicas": transition.replicas}})
    first = (*early, scale) if transition is STOP else (scale, *early)
    return Writes(first, last)


Loop = Callable[[Bare, dict[str, Writes], "asyncio.Queue[str]"], Any]


async def _limit(
    admin: Bare,
    bare: Bare,
    transition: Transition,
    outcome: Outcome,
    deployments: dict[str, tuple[str, str]],
    loop: Loop,
) -> float:
    """Seconds of the bare loop; returns when all pods are there or gone."""
    work = {name: _writes(transition, outcome, name, service) for name, service in deployments.items()}
    arrived: asyncio.Queue[str] = asyncio.Queue()
    async with observing(admin, transition.replicas, arrived.put_nowait) as observer:
        started = time.monotonic()
        await loop(bare, work, arrived)
        seconds = time.monotonic() - started
        async with asyncio.timeout(600):
            while len(observer.arrived_at) < len(deployments):  # noqa: ASYNC110 (watches set it)
                await asyncio.sleep(0.1)
    return seconds


async def blindly(bare: Bare, work: dict[str, Writes], arrived: "asyncio.Queue[str]") -> None:
    """All writes, as fast as they go."""
    await bare.send((*writes.first, writes.last) for writes in work.values())


async def follow(bare: Bare, work: dict[str, Writes], arrived: "asyncio.Queue[str]") -> None:
    """The last status of each service when its Deployment has arrived."""
    first = iter(work.values())
    left = len(work)

    async def worker() -> None:
        nonlocal left
        for writes in first:
            for call in writes.first:
                await bare.call(call)
        while left > 0:
            left -= 1
            await bare.call(work[await arrived.get()].last)

    await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))


def _tell(report: Report, name: str, size: int, outcome: Outcome, limits: Limits) -> None:
    what = f"{name} {size:,}"
    met = outcome.seconds <= _MAX_TIMES_LIMIT * limits.blind
    report.add(f"{what}: to the last write", outcome.seconds, "s", limits.blind, "<= 2x", met)
    report.add(f"{what}: beside a loop that waits for pods", outcome.seconds, "s", limits.following)
    report.add(f"{what}: to the last scale write", outcome.last_scale, "s")
    met = outcome.counted <= _MAX_WRITES
    report.add(f"{what}: writes a service", outcome.counted, "", None, "<= 3", met)
    report.add(f"{what}: operator's CPU a service", outcome.cpu * 1000, "ms")
    report.details[what] = {
        "last_arrival_seconds": outcome.last_arrival,
        "writes_with_those_of_account_and_topup": outcome.writes,
        "status_patches": outcome.patches,
    }
