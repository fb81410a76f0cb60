"""`python -m tests.tools.soak --seed 1 --minutes 10`: Farebox under random users, callers and kills.

Everything is real but pods: control plane, manifests, operators, meter, gateways with Envoy. Rounds of random
acts from a seed, with processes killed meanwhile; after each round all rests, and what is there then is
judged. Timing is the machine's, so a seed gives the same sort of run, not the same run.
"""

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from tests.support.postgres import FAST, Postgres
from tests.support.reaper import reaping
from tests.tools.plane import Plane
from tests.tools.soak.actors import Actors, schedule
from tests.tools.soak.books import Books, logs
from tests.tools.soak.calling import Callers
from tests.tools.soak.chaos import Chaos
from tests.tools.soak.facts import Seen, condition, look
from tests.tools.soak.oracle import Oracle, account_of
from tests.tools.soak.world import Kube, Soaked, World

SETTLE_SECONDS = 100.0
SLOW_SECONDS = 30.0
REST_SECONDS = 14.0
ENV = {"FAREBOX_FIGURES_SECONDS": "2", "FAREBOX_BALANCE_MAX_AGE_SECONDS": "8"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--round", type=float, default=60, help="seconds of acts before everything rests")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--sweep", default="60", help="FAREBOX_SWEEP_SECONDS")
    parser.add_argument("--no-chaos", action="store_true")
    parser.add_argument("--logs", type=Path, help="where logs and the journal are kept")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        directory = options.logs or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="farebox-soak-"))
        )
        directory.mkdir(parents=True, exist_ok=True)
        database = None
        if options.database == "postgresql":
            database = stack.enter_context(Postgres.started(**FAST))
            database.create("soak")
        plane = stack.enter_context(Plane.start(nodes=2))
        return run(options, plane, directory, database)


def run(options: argparse.Namespace, plane: Plane, directory: Path, database: Postgres | None) -> int:
    farebox = Soaked(plane, directory)
    with farebox:
        farebox.apply_manifests()
        farebox.ledger_url = (
            f"sqlite:///{directory / 'ledger.db'}" if database is None else database.url("soak")
        )
        farebox.start_meter()
        simulator = farebox.start_simulator("--ttft-ms 10 --tokens-per-second 150")
        upstream = f"127.0.0.1:{simulator.port}"
        world = World(options.seed, farebox, Kube(plane.kubeconfig), upstream, directory / "journal")
        chaos = Chaos(world, plane, ENV | {"FAREBOX_SWEEP_SECONDS": options.sweep}, 2, database)
        for _ in range(2):
            farebox.start_gateway(upstream, FAREBOX_REPLICAS="2", FAREBOX_BALANCE_MAX_AGE_SECONDS="25")
        return Soak(options, world, chaos, directory).run()


class Soak:
    """Rounds of acts and of judgement."""

    def __init__(self, options: argparse.Namespace, world: World, chaos: Chaos, directory: Path) -> None:
        self.options = options
        self.world = world
        self.chaos = chaos
        self.directory = directory
        self.actors = Actors(world)
        self.callers = Callers(world)
        self.books = Books(world, world.stack.ledger_url)
        self._read: dict[Path, int] = {}

    def run(self) -> int:
        world, began = self.world, time.time()
        self.actors.begin(world.chance("begin"))
        for name, act, mean in schedule(self.actors):
            world.actor(name, act, mean)
        for number in range(3):
            world.actor(f"caller-{number}", self.callers.caller, 0.15)
        world.actor("keys", self.callers.learn_keys, 3)
        if not self.options.no_chaos:
            world.actor("chaos", self.chaos.act, 4)
        world.actor("mender", lambda _: self.chaos.mend(), 1)
        number = 0
        while time.time() - began < 60 * self.options.minutes:
            number += 1
            world.go.set()
            time.sleep(self.options.round)
            self._rest()
            self._judge(number)
            sums = dict(sorted(world.counts.items()))
            minutes = (time.time() - began) / 60
            print(
                f"round {number}, {minutes:.1f} min, {len(world.divergences)} divergences: {sums}", flush=True
            )
        world.over.set()
        self._verify()
        print(f"seed {self.options.seed}: {len(world.divergences)} divergences", flush=True)
        return 1 if world.divergences else 0

    def _rest(self) -> None:
        """Everybody stops, what was paused or killed is back."""
        self.world.go.clear()
        deadline = time.time() + 120
        while self.world.resting < self.world.actors:
            if time.time() > deadline:
                print(f"only {self.world.resting} of {self.world.actors} actors rest", flush=True)
                break
            time.sleep(0.2)
        self.chaos.mend()

    def _judge(self, number: int) -> None:
        began = time.time()
        faults: list[str] = ["nothing was seen yet"]
        self.world.note("judge", f"round {number}")
        while faults and time.time() - began < SETTLE_SECONDS:
            time.sleep(1)
            self.chaos.mend()
            try:
                seen = look(self.world)
                faults = Oracle(self.world, seen).judge() or self.books.judge(seen)
            except OSError as error:
                faults = [f"{type(error).__name__}: {error}"]
            for fault in faults[:5]:
                self.world.note("judge", fault[:300])
        settled = time.time() - began
        print(f"settled after {settled:.1f} s", flush=True)
        if not faults and settled > SLOW_SECONDS:
            self.world.diverges(f"round {number} took {settled:.0f} s to settle")
        for fault in faults:
            self.world.diverges(f"round {number}: {fault}")
        self._at_rest(number)
        self._calm_calls(number)
        for fault in logs(self.directory, self._read):
            self.world.diverges(fault)

    def _at_rest(self, number: int) -> None:
        """B20: a cluster at rest sees no writes."""
        before = look(self.world)
        time.sleep(REST_SECONDS)
        after = look(self.world)
        old, new = before.versions(), after.versions()
        # Time alone changes these: keys that expire, and those that met another's Secret.
        expiring = {
            f"APIKey {key}"
            for key, raw in before.keys.items()
            if raw["spec"].get("expiresAt") or condition(raw, "Ready").get("status") != "True"
        }
        changed = [path for path in old.keys() | new.keys() if old.get(path) != new.get(path)]
        if before.balances != after.balances or before.quotas != after.quotas:
            return  # usage came meanwhile, or a reservation did
        for path in set(changed) - expiring:
            self.world.diverges(f"round {number}: {path} was written at rest")

    def _calm_calls(self, number: int) -> None:
        """One call of each service through each gateway, answered as its state says."""
        chance = self.world.chance(f"calm-{number}")
        seen = look(self.world)
        self.callers.learn_keys(chance)
        for key, raw in seen.keys.items():
            token = self.callers.delivered.get(key)
            if token is None or condition(raw, "Ready").get("status") != "True":
                continue
            for service in [
                each for each in seen.services if each.partition("/")[0] == key.partition("/")[0]
            ]:
                gateway = chance.choice(self.world.stack.gateways)
                self._calm_call(number, seen, chance, key, token, service, gateway.url)

    def _calm_call(
        self, number: int, seen: Seen, chance: Random, key: str, token: str, service: str, gateway: str
    ) -> None:
        call = self.callers.call(chance, token, key, service, calm=True, gateway=gateway)
        allowed = allowed_answers(seen, key, service)
        if call.status == 402 and "endpoint is inactive" in call.said:
            # The calls before this one may have spent what there was; nothing else has changed.
            spent = any(each in call.said for each in ("OVERDUE", "FREE_QUOTA", "RESUMING"))
            if 200 in allowed and not spent:
                allowed -= {402}
        if call.status == 400 and "cost_unbounded" not in call.said:
            allowed -= {400}
        if call.status not in allowed:
            what = f"round {number}: call of {service} by {key}: {call.status} {call.said}"
            self.world.diverges(f"{what}, not {sorted(allowed)}")

    def _verify(self) -> None:
        """`farebox ledger verify` on the books."""
        command = [sys.executable, "-m", "farebox", "ledger", "verify", "--url", self.world.stack.ledger_url]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        print(result.stdout.strip(), flush=True)
        if result.returncode != 0:
            self.world.diverges(f"farebox ledger verify: {result.stdout}{result.stderr}")


def allowed_answers(seen: Seen, key: str, service: str) -> set[int]:
    """How a call may be answered while nothing else happens."""
    spec, raw, reason = (
        seen.keys[key]["spec"],
        seen.services[service],
        condition(seen.keys[key], "Ready")["reason"],
    )
    if reason in ("Disabled", "Expired"):
        return {401}
    expiring = {401} if spec.get("expiresAt") else set()
    names = spec["services"].get("names")
    ranges = ((raw["spec"].get("access") or {}).get("allowedCIDRs"), spec.get("allowedCIDRs"))
    bound_elsewhere = names is not None and service.partition("/")[2] not in names
    if bound_elsewhere or any(found and "127.0.0.0/8" not in found for found in ranges):
        return {403} | expiring
    if condition(raw, "Serving").get("status") != "True":
        return {402} | expiring
    account = seen.accounts.get(account_of(raw), {"spec": {}})
    hard = {400} if account["spec"].get("enforcement") == "Hard" else set()
    return {200, 402, 429} | hard | expiring


if __name__ == "__main__":
    try:
        with reaping():
            status = main()
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
