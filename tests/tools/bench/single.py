"""single: from a TopUp's apply to the first scale write, at rest and while thousands of services stop.

Each round tops up one overdue account with one dedicated service. What the steps on the way take is read from
the operator's histograms before and after each round, and from watches of the benchmark's own.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from tests.support.api import path_of
from tests.tools.bench.observer import deployment
from tests.tools.bench.process import Metrics
from tests.tools.bench.report import Report, percentile
from tests.tools.bench.world import CHARGE, DEPLOYMENTS, SERVICES, World, is_running, is_stopped, open_world

ROUNDS = 100
ROUNDS_UNDER_LOAD = 50
PROBES = 50
AT_REST = 1000
CROWD = 2000

_CROWD = "crowd"
_PROBES = "probes"
_GIVE_UP_SECONDS = 60
_STILL_SECONDS = 1.0
"""A crowd without an event for this long has stopped: a round that ends then was not under load."""
_GOALS = {"at rest": {50: 0.060, 99: 0.150}, "under load": {99: 1.0}}
# What the API server, the ledger and the operator take of a round, as histograms of the operator say.
_STEPS = {
    "ledger: the top-up is booked": ("farebox_ledger_topup_seconds_sum", {}),
    "queue: keys wait for a worker": ("workqueue_queue_duration_seconds_sum", {}),
    "write: the scale patch": ("farebox_api_write_duration_seconds_sum", {"write": "scale"}),
}


@dataclass
class Probe:
    """One account with one service, and what was seen of it."""

    name: str
    deployment: str = ""
    scaled: asyncio.Event = field(default_factory=asyncio.Event)
    scaled_at: float = 0.0
    topup_seen_at: float = 0.0


@dataclass(frozen=True)
class Round:
    """Seconds of one round, in all and by step."""

    seconds: float
    steps: dict[str, float]


async def run(scale: float) -> Report:
    """The whole benchmark."""
    report = Report("single", scale)
    rounds, crowd = max(2, round(ROUNDS * scale)), max(4, round(CROWD * scale))
    async with open_world() as world, AsyncExitStack() as watches:
        probes = await _make_probes(world, min(PROBES, rounds))
        rest = max(2, round(AT_REST * scale))
        await _make_crowd(world, range(rest))
        field_ = _Field(world, probes)
        await watches.enter_async_context(world.bare.watching(DEPLOYMENTS, field_.on_deployment))
        await watches.enter_async_context(world.bare.watching(path_of("TopUp"), field_.see_topup))
        calm = await field_.calm_rounds(rounds)
        _tell(report, "at rest", calm)
        await _make_crowd(world, range(rest, crowd))
        loaded = await field_.rounds_under_load(max(2, round(ROUNDS_UNDER_LOAD * scale)))
        _tell(report, "under load", loaded)
        report.details |= {
            "services_at_rest": rest,
            "services_stopping": crowd,
            "rounds_under_load": len(loaded),
        }
    return report


async def _make_probes(world: World, count: int) -> list[Probe]:
    """Accounts that are overdue, each with a service that ran before."""
    await world.namespace(_PROBES)
    probes = [Probe(f"probe-{i:03d}") for i in range(count)]
    for probe in probes:
        await world.account(_PROBES, probe.name, CHARGE // 2)
        await world.services(_PROBES, probe.name, [probe.name])
    await world.until("probes run", SERVICES, is_running, count)
    for item in await world.bare.all(DEPLOYMENTS):
        owner = item["metadata"]["annotations"]["farebox.dev/service-name"]
        next(probe for probe in probes if probe.name == owner).deployment = item["metadata"]["name"]
    await _take_money(world, probes)
    return probes


async def _take_money(world: World, probes: Sequence[Probe]) -> None:
    await world.charge(*(f"{_PROBES}/{probe.name}" for probe in probes))
    await world.until("probes are overdue", path_of("InferenceService", _PROBES), is_stopped, len(probes))


async def _make_crowd(world: World, numbers: range) -> None:
    if numbers.start == 0:
        await world.namespace(_CROWD)
        await world.account(_CROWD, _CROWD, CHARGE // 2)
    await world.services(_CROWD, _CROWD, [f"service-{i:05d}" for i in numbers])
    await world.until("services run", path_of("InferenceService", _CROWD), is_running, numbers.stop)


class _Field:
    """The probes, and what the watches see of them."""

    def __init__(self, world: World, probes: list[Probe]) -> None:
        self._world = world
        self._probes = probes
        self._by_deployment = {probe.deployment.encode(): probe for probe in probes}
        self._by_topup: dict[bytes, Probe] = {}
        self._crowd_moved = asyncio.Event()
        self._crowd_at = 0.0

    def on_deployment(self, line: bytes, at: float) -> None:
        """An event of a Deployment: a probe's, or one of the crowd's."""
        seen = deployment(line)
        probe = self._by_deployment.get(seen.name.encode())
        if probe is None:
            self._crowd_at = at
            self._crowd_moved.set()
        elif seen.desired == 1 and not probe.scaled.is_set():
            probe.scaled_at = at
            probe.scaled.set()

    def see_topup(self, line: bytes, at: float) -> None:
        """An event of a TopUp; the first is its creation."""
        for name in list(self._by_topup):
            if b'"name":"' + name + b'"' in line:
                self._by_topup.pop(name).topup_seen_at = at

    async def calm_rounds(self, count: int) -> list[Round]:
        """Rounds one after another, each when all is at rest again."""
        rounds: list[Round] = []
        while len(rounds) < count:
            for probe in self._probes[: count - len(rounds)]:
                before = await self._world.at_rest(quiet_seconds=0.3)
                rounds.append(await self._round(probe, before))
            await self._broke_again()
        return rounds

    async def rounds_under_load(self, count: int) -> list[Round]:
        """Rounds one after another while the crowd stops; the crowd is brought back when it is through."""
        world, rounds = self._world, list[Round]()
        crowd = path_of("InferenceService", _CROWD)
        everyone = len(await world.bare.all(crowd))
        while len(rounds) < count:
            self._crowd_moved.clear()
            await world.charge(f"{_CROWD}/service-00000")
            await self._crowd_moved.wait()
            for probe in self._probes[: count - len(rounds)]:
                result = await self._round(probe, None)
                if probe.scaled_at - self._crowd_at > _STILL_SECONDS:
                    break
                rounds.append(result)
            await world.until("the crowd stopped", crowd, is_stopped, everyone)
            await world.top_up(_CROWD, _CROWD, CHARGE)
            await world.until("the crowd runs", crowd, is_running, everyone)
            await self._broke_again()
        return rounds

    async def _broke_again(self) -> None:
        world = self._world
        names = [probe for probe in self._probes if probe.scaled.is_set()]
        for probe in names:
            probe.scaled.clear()
        await world.at_rest()
        await world.charge(*(f"{_PROBES}/{probe.name}" for probe in names))
        await world.until(
            "probes are overdue", path_of("InferenceService", _PROBES), is_stopped, len(self._probes)
        )
        for probe in names:
            probe.scaled.clear()

    async def _round(self, probe: Probe, before: Metrics | None) -> Round:
        world = self._world
        topup = world.topup(_PROBES, probe.name, CHARGE)
        self._by_topup[topup["metadata"]["name"].encode()] = probe
        started = time.monotonic()
        await world.bare.create(path_of("TopUp", _PROBES), topup)
        answered = time.monotonic()
        try:
            async with asyncio.timeout(_GIVE_UP_SECONDS):
                await probe.scaled.wait()
        except TimeoutError:
            message = f"{probe.name} was topped up, and not scaled in {_GIVE_UP_SECONDS} s"
            raise AssertionError(f"{message}\n{world.operator.tail()}") from None
        seconds = probe.scaled_at - started
        if before is None:
            return Round(seconds, {})
        after = await asyncio.to_thread(Metrics.of, world.operator)
        steps = {
            "API server: the TopUp is stored": min(answered, probe.topup_seen_at) - started,
            "watch: its event is on the wire": max(0.0, probe.topup_seen_at - answered),
        } | {step: after.since(before, name, **labels) for step, (name, labels) in _STEPS.items()}
        steps["operator: Kopf, cache, decision; the event of the write"] = seconds - sum(steps.values())
        return Round(seconds, steps)


def _tell(report: Report, what: str, rounds: Sequence[Round]) -> None:
    seconds = [round_.seconds for round_ in rounds]
    for percent in (50, 99):
        value = percentile(seconds, percent)
        limit = _GOALS[what].get(percent)
        goal = None if limit is None else f"< {limit * 1000:.0f} ms"
        report.add(
            f"{what}: TopUp to scale write, p{percent}", value * 1000, "ms", None, goal,
            None if limit is None else value < limit,
        )  # fmt: skip
    steps = defaultdict(list)
    for round_ in rounds:
        for step, value in round_.steps.items():
            steps[step].append(value)
    for step, values in steps.items():
        report.add(f"  of it p50 {step}", percentile(values, 50) * 1000, "ms")
    report.details[f"{what} milliseconds"] = sorted(round(value * 1000, 1) for value in seconds)
