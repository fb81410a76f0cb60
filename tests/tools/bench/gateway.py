"""gateway: the cost of a call beside plain Envoy and other gateways; how fast an empty account stops calls.

All share the machine with the load and the upstream (load.go), unpinned: the ratios are to be believed, not
the figures. Speed is measured with the real decision process and no cluster (gateway_parts), money with the
real everything (gateway_money). gateway_others has the other gateways.
"""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.gateway.harness import TOKEN
from tests.tools.bench import gateway_hostile, gateway_money
from tests.tools.bench.gateway_others import add_others
from tests.tools.bench.gateway_targets import Target, targets
from tests.tools.bench.loading import build, load, request
from tests.tools.bench.process import memory_mb
from tests.tools.bench.report import Report, percentile
from tests.tools.bench.world import progress

CONNECTIONS = 48
RATE = 500.0
RATE_CONNECTIONS = 64
ROUNDS = 5
STREAMS = 1000
_SLOW_EVENTS = 40
"""Of a slow stream; see load.go."""


async def run(scale: float) -> Report:
    """The whole benchmark."""
    report = Report("gateway", scale)
    with tempfile.TemporaryDirectory(prefix="fbx-", dir="/tmp") as name:
        directory = Path(name)
        program = await asyncio.to_thread(build, directory)
        async with targets(directory, program) as made:
            report.notes += await add_others(made)
            bench = _Bench(report, made.found, program)
            await bench.warm_up()
            for kind in ("json", "sse"):
                progress(f"throughput, {kind}")
                await bench.throughput(kind, max(0.5, 4 * scale))
            progress("latency")
            await bench.latency(max(1.0, 6 * scale))
            progress("one key does its worst")
            await gateway_hostile.measure(report, made.found[1], program, max(1.0, 3 * scale))
            progress("streams")
            await bench.streams(max(20, round(STREAMS * scale)))
        progress("cutoff and overshoot")
        await gateway_money.measure(report, directory, program, scale)
    return report


class _Bench:
    """The targets under their loads."""

    def __init__(self, report: Report, found: Sequence[Target], program: Path) -> None:
        self._report = report
        self._found = found
        self._program = program
        self._unserved: set[tuple[str, str]] = set()

    async def warm_up(self) -> None:
        """Each serves both kinds before anything counts. Another gateway that cannot is left out."""
        for target in self._found:
            for kind in ("json", "sse"):
                text = request(target.token, "chat", kind, headers=target.headers)
                result = await load(self._program, "closed", target.port, text, 8, 0.5)
                if set(result.statuses) == {200}:
                    continue
                message = f"{target.name} does not serve {kind}: {result.statuses}"
                if target in self._found[:2]:
                    raise RuntimeError(message)
                self._report.notes.append(message)
                self._unserved.add((target.name, kind))

    async def throughput(self, kind: str, seconds: float) -> None:
        """Requests a second of all targets, in turns; the median of the rounds counts."""
        found = [target for target in self._found if (target.name, kind) not in self._unserved]
        rates: dict[str, list[float]] = {target.name: [] for target in found}
        costs: dict[tuple[str, str], list[float]] = {}
        for _ in range(ROUNDS):
            for target in found:
                text = request(target.token, "chat", kind, headers=target.headers)
                before = target.cpu()
                result = await load(self._program, "closed", target.port, text, CONNECTIONS, seconds)
                after = target.cpu()
                assert set(result.statuses) == {200}, f"{target.name}: {result.statuses}"
                rates[target.name].append(result.calls / result.seconds)
                for process, seconds_after in after.items():
                    cost = (seconds_after - before[process]) / result.calls * 1e6
                    costs.setdefault((target.name, process), []).append(cost)
        self._tell_rates(kind, {name: percentile(values, 50) for name, values in rates.items()})
        for (name, process), values in costs.items():
            what = f"{kind}: {name}, CPU of {process}"
            self._report.add(what, percentile(values, 50), "us/request")

    def _tell_rates(self, kind: str, medians: dict[str, float]) -> None:
        plain, ours = medians["plain Envoy"], medians["Farebox"]
        for name, rate in medians.items():
            goal, met = ("at least 0.25x", rate >= 0.25 * plain) if name == "Farebox" else (None, None)
            self._report.add(f"{kind}: {name}", rate, "requests/s", plain, goal, met)
        if "LiteLLM" in medians:
            times = ours / medians["LiteLLM"]
            what = f"{kind}: Farebox over LiteLLM"
            self._report.add(what, times, "times", goal="at least 50", met=times >= 50)

    async def latency(self, seconds: float) -> None:
        """The time that Farebox adds at RATE calls a second, in turns with plain Envoy."""
        times: dict[str, list[float]] = {}
        added: dict[int, list[float]] = {50: [], 99: []}
        text = request(TOKEN, "chat", "json")
        for _ in range(ROUNDS):
            one_round = []
            for target in self._found[:2]:
                result = await load(self._program, "open", target.port, text, RATE_CONNECTIONS, seconds, RATE)
                assert set(result.statuses) == {200}, f"{target.name}: {result.statuses}"
                one_round.append([latency * 1000 for latency in result.latencies])
                times.setdefault(target.name, []).extend(one_round[-1])
            plain, ours = one_round
            for percent, values in added.items():
                values.append(percentile(ours, percent) - percentile(plain, percent))
        for percent, values in added.items():
            base, whole = (percentile(each, percent) for each in times.values())
            self._report.add(f"Farebox p{percent} at {RATE:g}/s", whole, "ms", base)
            median = percentile(values, 50)
            goal, met = ("under 3 ms", median < 3) if percent == 99 else (None, None)
            what = f"added p{percent}, median of {ROUNDS} rounds"
            self._report.add(what, median, "ms", goal=goal, met=met)

    async def streams(self, count: int) -> None:
        """Many open streams at once, each with an event every quarter of a second."""
        target = self._found[1]
        text = request(TOKEN, "chat", "slow")
        running = asyncio.create_task(load(self._program, "once", target.port, text, count))
        most_envoy = most_python = 0.0
        while not running.done():
            most_envoy = max(most_envoy, memory_mb(target.processes["Envoy"]))
            most_python = max(most_python, memory_mb(target.processes["Python"]))
            await asyncio.wait({running}, timeout=0.2)
        result = await running
        assert result.statuses == {200: count}, result.statuses
        what = f"{count:,} open streams"
        self._report.add(f"{what}, events that arrived", result.events, "events", count * _SLOW_EVENTS)
        self._report.add(f"{what}, events", result.events / result.seconds, "events/s")
        self._report.add(f"{what}, memory of Envoy", most_envoy, "MB")
        self._report.add(f"{what}, memory of Python", most_python, "MB")
