"""Processes killed, paused and started again, and an etcd that forgets what was. Every act undoes itself."""

import base64
import json
import random
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable

from tests.support.gateway import Gateway
from tests.support.postgres import Postgres
from tests.support.processes import Process
from tests.tools.plane import Plane
from tests.tools.soak.world import World

LEASE_LOST = "lease.lost"


class Chaos:
    """What happens to the processes. `operators` are the replicas that there shall be."""

    def __init__(
        self, world: World, plane: Plane, operators: dict[str, str], replicas: int, database: Postgres | None
    ) -> None:
        self.world = world
        self.plane = plane
        self.database = database
        self._env = operators
        self._busy = threading.Lock()
        self.operators: list[Process] = []
        for _ in range(replicas):
            self.operators.append(world.stack.start_operator(**operators))

    def act(self, chance: random.Random) -> None:
        acts: list[tuple[float, Callable[[random.Random], str]]] = [
            (3, self._kill_operator),
            (2, self._pause_operator),
            (1, self._end_operator),
            (2, self._kill_meter),
            (2, self._pause_meter),
            (2, self._kill_decisions),
            (1, self._pause_decisions),
            (1, self._kill_envoy),
            (0.5, self._pause_envoy),
            (1, self._kill_apiserver),
            (1, self._pause_apiserver),
            (1.5, self._compact),
        ]
        if self.database is not None:
            acts += [(1.5, self._crash_database), (1.5, self._cut_off)]
        weights, choices = zip(*acts, strict=True)
        chosen = chance.choices(choices, weights)[0]
        began = time.time()
        with self._busy:
            what = chosen(chance)
        self.world.disturbed.append((began, time.time(), what))
        self.world.note("chaos", what)
        self.world.count(f"chaos:{chosen.__name__.removeprefix('_')}")

    def mend(self) -> None:
        """Start what has ended by itself, as Kubernetes does; what may not end is a divergence."""
        if not self._busy.acquire(blocking=False):
            return
        try:
            self._mend()
        finally:
            self._busy.release()

    def _mend(self) -> None:
        for place, operator in enumerate(self.operators):
            if operator.running():
                continue
            code = operator.wait_end()
            said = operator.log.read_text(errors="replace")
            if code != -9 and LEASE_LOST not in said:
                self.world.diverges(f"{operator.name} ended with {code}: {operator.tail(5)}")
            self.world.count("operators that ended by themselves")
            self.world.note("chaos", f"{operator.name} ended with {code}; another one")
            self.operators[place] = self.world.stack.start_operator(**self._env)
        meter = self.world.stack.meter
        if meter is not None and not meter.running():
            self.world.diverges(f"the meter ended with {meter.wait_end()}: {meter.tail(5)}")
            self.world.stack.start_meter()
        for gateway in self.world.stack.gateways:
            for process, start in (
                (gateway.decisions, gateway.start_decisions),
                (gateway.envoy, gateway.start_envoy),
            ):
                if process is not None and not process.running():
                    self.world.diverges(f"{process.name} ended with {process.wait_end()}: {process.tail(5)}")
                    start()

    def _kill_operator(self, chance: random.Random) -> str:
        place = chance.randrange(len(self.operators))
        self.operators[place].kill()
        time.sleep(chance.choice((0, 1, 4)))
        self.operators[place] = self.world.stack.start_operator(**self._env)
        return f"killed an operator; {self.operators[place].name} took its place"

    def _end_operator(self, chance: random.Random) -> str:
        place = chance.randrange(len(self.operators))
        operator = self.operators[place]
        if operator.running() and (code := operator.stop()) not in (0, 1):
            self.world.diverges(f"{operator.name} ended with {code} when asked to")
        self.operators[place] = self.world.stack.start_operator(**self._env)
        return f"ended {operator.name}"

    def _pause_operator(self, chance: random.Random) -> str:
        operator = chance.choice(self.operators)
        self._pause(operator, chance.choice((1, 3, 12)))
        return f"paused {operator.name}"

    def _pause(self, process: Process, seconds: float) -> None:
        if not process.running():
            return
        process.pause()
        time.sleep(seconds)
        process.resume()

    def _kill_meter(self, chance: random.Random) -> str:
        assert self.world.stack.meter is not None
        self.world.stack.meter.kill()
        seconds = chance.choice((0, 2, 15))
        time.sleep(seconds)
        self.world.stack.start_meter()
        return f"killed the meter for {seconds} s"

    def _pause_meter(self, chance: random.Random) -> str:
        assert self.world.stack.meter is not None
        self._pause(self.world.stack.meter, chance.choice((1, 4, 15)))
        return "paused the meter"

    def _gateway(self, chance: random.Random) -> Gateway:
        return chance.choice(self.world.stack.gateways)

    def _kill_decisions(self, chance: random.Random) -> str:
        gateway = self._gateway(chance)
        assert gateway.decisions is not None
        gateway.decisions.kill()
        time.sleep(chance.choice((0, 2)))
        gateway.start_decisions()
        return f"killed {gateway.name}"

    def _pause_decisions(self, chance: random.Random) -> str:
        gateway = self._gateway(chance)
        assert gateway.decisions is not None
        self._pause(gateway.decisions, chance.choice((1, 4)))
        return f"paused {gateway.name}"

    def _kill_envoy(self, chance: random.Random) -> str:
        gateway = self._gateway(chance)
        assert gateway.envoy is not None
        gateway.envoy.kill()
        time.sleep(chance.choice((0, 1)))
        gateway.start_envoy()
        return f"killed {gateway.name}-envoy"

    def _pause_envoy(self, chance: random.Random) -> str:
        gateway = self._gateway(chance)
        assert gateway.envoy is not None
        self._pause(gateway.envoy, chance.choice((1, 3)))
        return f"paused {gateway.name}-envoy"

    def _kill_apiserver(self, chance: random.Random) -> str:
        self.plane.kill_apiserver()
        time.sleep(chance.choice((0, 2, 6)))
        self.plane.restart_apiserver()
        return "killed the API server"

    def _pause_apiserver(self, chance: random.Random) -> str:
        self.plane.pause_apiserver()
        time.sleep(chance.choice((1, 3, 8)))
        self.plane.resume_apiserver()
        return "paused the API server"

    def _compact(self, chance: random.Random) -> str:
        """etcd forgets all revisions but the last: watches that lag restart (410 Gone)."""
        head = self._etcd("range", {"key": base64.b64encode(b"/").decode()})["header"]["revision"]
        self._etcd("compaction", {"revision": head, "physical": True})
        if chance.random() < 0.4:
            self.plane.kill_apiserver()
            self.plane.restart_apiserver()
        return f"compacted etcd to {head}"

    def _etcd(self, call: str, body: dict[str, object]) -> dict[str, dict[str, str]]:
        layout = self.plane._layout
        context = ssl.create_default_context(cafile=str(layout.pki / "etcd-ca.crt"))
        context.load_cert_chain(layout.pki / "apiserver-etcd.crt", layout.pki / "apiserver-etcd.key")
        request = urllib.request.Request(
            f"https://127.0.0.1:{layout.etcd_port}/v3/kv/{call}", data=json.dumps(body).encode()
        )
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            found: dict[str, dict[str, str]] = json.load(answer)
            return found

    def _crash_database(self, chance: random.Random) -> str:
        assert self.database is not None
        self.database.crash()
        time.sleep(chance.choice((0, 3)))
        self.database.start()
        return "crashed the database"

    def _cut_off(self, chance: random.Random) -> str:
        assert self.database is not None
        return f"cut off {self.database.cut_off('soak')} connections of the database"
