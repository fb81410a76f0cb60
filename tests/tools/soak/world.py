"""What all actors of the soak share: the stack, the clock of the run, and a journal of what was done."""

import json
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import config

from tests.support.ports import free_port
from tests.support.processes import Process
from tests.support.stack import AUDIENCE, SYSTEM, Stack

JSONObject = dict[str, Any]
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
NO_ANSWER = 0
"""The status of a request that was not answered: nothing is known of what became of it."""


class Kube:
    """Requests as kubectl and Argo CD make them; safe to use from many threads."""

    def __init__(self, kubeconfig: Path) -> None:
        found = config.new_client_from_config(str(kubeconfig)).configuration
        self._host = found.host
        self._pool = urllib3.PoolManager(
            maxsize=16, cert_file=found.cert_file, key_file=found.key_file, ca_certs=found.ssl_ca_cert
        )

    def ask(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> tuple[int, JSONObject]:
        """Status and body; NO_ANSWER without one."""
        try:
            answer = self._pool.request(
                method,
                self._host + path,
                body=None if body is None else json.dumps(body),
                headers={"Content-Type": content_type, "Accept": "application/json"},
                timeout=20,
                retries=False,
            )
            return answer.status, json.loads(answer.data or b"{}")
        except (urllib3.exceptions.HTTPError, ValueError, OSError) as error:
            return NO_ANSWER, {"message": str(error)}

    def items(self, path: str) -> list[JSONObject]:
        """A list. Raises OSError when it is not to be had."""
        status, found = self.ask("GET", path)
        if status != 200:
            raise OSError(f"GET {path}: {status} {found.get('message')}")
        items: list[JSONObject] = found["items"]
        return items


class Soaked(Stack):
    """Farebox with the ledger where the run wants it."""

    ledger_url = ""

    def start_meter(self, port: int | None = None) -> Process:
        port = port or (self.meter.port if self.meter else free_port())
        env = self._common_env("farebox-meter") | {
            "FAREBOX_LEDGER_URL": self.ledger_url or f"sqlite:///{self.directory / 'ledger.db'}",
            "FAREBOX_LISTEN_HOST": "127.0.0.1",
            "FAREBOX_LISTEN_PORT": str(port),
        }
        self.meter = Process("meter", "meter", self.directory, env, port)
        self.meter.wait_ready(120)
        self.meter_url = self.meter.url
        return self.meter


@dataclass
class Call:
    """One call as its caller saw it. `status` 0: no answer; `whole`: it was read to its end."""

    service: str
    key: str
    gateway: str
    began: float
    expect_input: int
    stream: bool
    calm: bool = False
    ended: float = 0.0
    status: int = 0
    request_id: str = ""
    usage: JSONObject | None = None
    pieces: int = 0
    whole: bool = False
    said: str = ""


@dataclass
class World:
    """The run."""

    seed: int
    stack: Soaked
    kube: Kube
    simulator: str
    journal_file: Path
    go: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    divergences: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    prices: dict[str, list[tuple[float, list[JSONObject], bool]]] = field(default_factory=dict)
    topups: list[tuple[str, str, str, str]] = field(default_factory=list)
    enabled: set[str] = field(default_factory=set)
    keys: dict[str, str] = field(default_factory=dict)
    disturbed: list[tuple[float, float, str]] = field(default_factory=list)
    resting: int = 0
    actors: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._journal = self.journal_file.open("a", buffering=1)
        self._meter_token = self.stack.cluster.service_account_token(
            SYSTEM, "farebox-operator", audience=AUDIENCE
        )

    def chance(self, name: str) -> random.Random:
        """An actor's own chance."""
        return random.Random(f"{self.seed}-{name}")

    def note(self, who: str, what: str) -> None:
        """A line of the journal."""
        self._journal.write(f"{time.time():.3f} {who}: {what}\n")

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def diverges(self, what: str) -> None:
        """Something is not as product.md has it."""
        self.divergences.append(what)
        self.note("DIVERGENCE", what)
        print(f"DIVERGENCE {what}", flush=True)

    def write(
        self, who: str, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> tuple[int, JSONObject]:
        """A user's write, noted and counted."""
        status, answer = self.kube.ask(method, path, body, content_type)
        short = json.dumps(body)[:300] if body is not None else ""
        said = "" if status < 400 and status else str(answer.get("message"))[:160]
        self.note(who, f"{method} {path} {short} -> {status} {said}")
        self.count(f"{who}:{method}")
        return status, answer

    def meter(self, path: str) -> JSONObject:
        """What the meter says, with the operator's rights."""
        return self.stack.call_meter("GET", path, token=self._meter_token)

    def actor(self, name: str, act: Any, mean: float) -> threading.Thread:
        """A thread that acts again and again while the world goes, about every `mean` seconds."""
        chance = self.chance(name)

        def run() -> None:
            while not self.over.is_set():
                if not self.go.is_set():
                    with self.lock:
                        self.resting += 1
                    while not self.go.wait(0.2) and not self.over.is_set():
                        pass
                    with self.lock:
                        self.resting -= 1
                    continue
                try:
                    act(chance)
                except Exception as error:  # an actor that fails is a fault of the soak: said, and gone on
                    self.note(name, f"FAILED {type(error).__name__}: {error}")
                    self.count("actor-failures")
                    if self.counts["actor-failures"] < 20:
                        print(f"{name} failed: {type(error).__name__}: {error}", flush=True)
                time.sleep(min(chance.expovariate(1 / mean), 5 * mean))

        self.actors += 1
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread
