"""A plane of its own for tests that start, pause and kill operators, and what these tests look at.

The lease is short here, so that a test waits seconds; its terms are those of the real one.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from farebox.kube.names import core_path, deployment_path, lease_path
from tests.integration.tenants import SECONDS, Tenant
from tests.integration.test_health import samples
from tests.support.api import path_of
from tests.support.processes import Process
from tests.support.stack import BACKENDS, SYSTEM, Stack
from tests.support.waiting import wait_for
from tests.tools.plane.binaries import Binaries
from tests.tools.plane.plane import Plane

LEASE_SECONDS = 3.0
BALANCE_MAX_AGE_SECONDS = 5.0
LEASE = lease_path(SYSTEM, "farebox-operator")
LEADER = 'leader_election_master_status{name="farebox-operator"}'
ENV = {
    "FAREBOX_LEASE_SECONDS": str(LEASE_SECONDS),
    "FAREBOX_BALANCE_MAX_AGE_SECONDS": str(BALANCE_MAX_AGE_SECONDS),
    "FAREBOX_FIGURES_SECONDS": "0.5",
}
KINDS = ("InferenceService", "BillingAccount", "TopUp", "Model")


@pytest.fixture(scope="session")
def dedicated_stack(binaries: Binaries) -> Iterator[Stack]:
    """Farebox without an operator, on a plane that no other worker uses: tests start and end operators."""
    with Plane.start(nodes=2) as plane:
        stack = Stack(plane, plane.directory)
        stack.apply_manifests()
        stack.start_meter()
        with stack:
            yield stack


@pytest.fixture
def dedicated_tenant(dedicated_stack: Stack) -> Iterator[Tenant]:
    """A namespace of one test's own, on that plane: `tenant` of a module that names it so."""
    made = Tenant(dedicated_stack)
    yield made
    made.close()
    # No operator runs now: what it would delete is deleted here, so that the next test finds nothing of this.
    for path in written(dedicated_stack):
        dedicated_stack.api.delete(path)


@contextmanager
def operators(stack: Stack, count: int) -> Iterator[list[Process]]:
    """`count` operators, named by their order; all started inside the block are stopped at its end."""
    before = len(stack.operators)
    try:
        yield [start(stack, f"op-{number}-{uuid.uuid4().hex[:4]}") for number in range(count)]
    except Exception as error:
        # Kubernetes would restart a process that ended, for example because the machine was too busy to
        # renew a Lease of seconds. Nothing restarts it here, so a test would wait until its timeout.
        for process in stack.operators[before:]:
            if not process.running():
                error.add_note(f"{process.name} has ended\n{process.tail(10)}")
        raise
    finally:
        for process in stack.operators[before:]:
            if process.running():
                process.stop()


def start(stack: Stack, identity: str = "", **env: str) -> Process:
    return stack.start_operator(**ENV, FAREBOX_IDENTITY=identity or f"op-{uuid.uuid4().hex[:8]}", **env)


def metrics(process: Process) -> dict[str, float]:
    return samples(process.http("/metrics")[1])


def leads(process: Process) -> bool:
    return metrics(process)[LEADER] == 1


def writes(process: Process) -> float:
    """All writes of an operator to the API server, but for its lease."""
    found = metrics(process)
    return sum(value for name, value in found.items() if name.startswith("farebox_api_writes_total"))


def holder(stack: Stack) -> str:
    return str(stack.api.get(LEASE)["spec"].get("holderIdentity") or "")


def backends(stack: Stack) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = stack.api.get(deployment_path(BACKENDS))["items"]
    return items


def written(stack: Stack) -> dict[str, str]:
    """The resourceVersions of everything that an operator may write, by path."""
    places = [path_of(kind) for kind in KINDS] + [deployment_path(BACKENDS), core_path("services", BACKENDS)]
    return {
        place_of(place, item["metadata"]): item["metadata"]["resourceVersion"]
        for place in places
        for item in stack.api.get(place)["items"]
    }


def place_of(collection: str, metadata: dict[str, Any]) -> str:
    """The path of an object of a collection, which may be that of all namespaces."""
    prefix, _, plural = collection.rpartition("/")
    namespace = metadata.get("namespace", "")
    if namespace and "/namespaces/" not in prefix:
        prefix = f"{prefix}/namespaces/{namespace}"
    return f"{prefix}/{plural}/{metadata['name']}"


def wait_rest(stack: Stack, process: Process) -> dict[str, str]:
    """Wait until two looks see the same objects and no write between; returns them.

    Counts are written up to a second after they changed, so the looks are further apart than that.
    """
    seen: list[tuple[float, dict[str, str]]] = []

    def look() -> bool:
        seen.append((writes(process), written(stack)))
        return len(seen) > 1 and seen[-1] == seen[-2]

    wait_for("the cluster is at rest", look, SECONDS, poll_seconds=2.5)
    return seen[-1][1]


def mixed_services(tenant: Tenant, balance: str = "10") -> tuple[str, list[str]]:
    """A model; three dedicated services and a shared one that pay as they go, and one that is off."""
    model = tenant.model()
    tenant.account(balance=balance)
    names = ["one", "two", "three"]
    for number, name in enumerate(names, 1):
        tenant.service(name, model, replicas=number)
    tenant.service("shared", model, dedicated=False)
    tenant.service("off", model, postpaid=False)
    return model, names


def wait_all(tenant: Tenant, model: str, names: list[str], running: bool) -> None:
    for number, name in enumerate(names, 1):
        if running:
            tenant.wait_running(name, number)
        else:
            tenant.wait_stopped(name, "Overdue")
    tenant.wait_state("shared", *(("Running",) if running else ("Stopped", "Overdue")))
    tenant.wait_shared(model, 1 if running else 0)
    tenant.wait_stopped("off", "PostpaidDisabled")
