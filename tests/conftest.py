"""Fixtures for all tests: control planes, and Farebox running on a cluster."""

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.postgres import FAST, Postgres
from tests.support.reaper import reaping
from tests.support.shared import Owner, SharedPlane, request
from tests.support.stack import Stack
from tests.tools.plane.cluster import Cluster
from tests.tools.plane.clusters import open_cluster
from tests.tools.plane.fixtures import binaries, pytest_collection_finish

__all__ = ["binaries", "pytest_collection_finish"]

# Machines that run this are shared and slow at times: how long an example takes proves nothing about Farebox.
settings.register_profile(
    "gate", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50
)
settings.register_profile("thorough", settings.get_profile("gate"), max_examples=1000)
settings.load_profile("thorough" if os.environ.get("FAREBOX_THOROUGH") else "gate")

_OWNER = pytest.StashKey[str]()
_LONGEST_FIRST = (
    "integration/test_operators.py",
    "integration/test_meter_away.py",
    "test_plane.py",
    "integration/test_apikeys.py",
    "test_demo.py",
    "integration/test_backends.py",
)
"""Files that take longest. The others follow in the order in which pytest collects them."""


def pytest_configure(config: pytest.Config) -> None:
    """Start the reaper in every process, and the owner of what workers share in the one that starts them."""
    resources = ExitStack()
    config.add_cleanup(resources.close)
    worker = getattr(config, "workerinput", None)
    if config.option.collectonly:
        return
    resources.enter_context(reaping(interruptible=os.environ.get("CLUSTER", "plane") == "plane"))
    if worker is not None:
        config.stash[_OWNER] = worker["farebox_owner"]
    else:
        config.stash[_OWNER] = f"farebox-shared-{uuid.uuid4().hex}"
        resources.callback(Owner(config.stash[_OWNER]).close)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: "object") -> None:
    """Give a new xdist worker the name of the owner."""
    node.workerinput["farebox_owner"] = node.config.stash[_OWNER]  # type: ignore[attr-defined]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, then all that need a plane or minutes: no worker ends with a long one."""
    longest = {Path(__file__).parent / name: place for place, name in enumerate(_LONGEST_FIRST)}
    slow = {item.path for item in items if _is_slow(item)}
    items.sort(key=lambda item: (longest.get(item.path, len(longest)), item.path not in slow))


def _is_slow(item: pytest.Item) -> bool:
    names: list[str] = getattr(item, "fixturenames", [])
    return not {"plane", "stack"}.isdisjoint(names) or item.get_closest_marker("timeout") is not None


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for all tests of the session; each makes databases of its own."""
    with Postgres.started(**FAST) as server:
        yield server


@pytest.fixture(scope="session")
def worker() -> str:
    """The name of this process among those that share the owner's plane."""
    return os.environ.get("PYTEST_XDIST_WORKER", "main")


@pytest.fixture(scope="session")
def plane(pytestconfig: pytest.Config, worker: str) -> Cluster:
    """A control plane with three simulated nodes, which all workers share. No operator runs on it."""
    return SharedPlane(request(pytestconfig.stash[_OWNER], "plane"), worker)


@pytest.fixture(scope="session")
def stack(pytestconfig: pytest.Config, worker: str) -> Iterator[Stack]:
    """Farebox on the cluster that CLUSTER names: one operator and a meter, which all workers share.

    Tests keep apart by namespaces. Those that kill processes or hold pods start a plane and a Stack for
    themselves.
    """
    if os.environ.get("CLUSTER", "plane") != "plane":
        with open_cluster() as cluster, Stack.start(cluster) as running:
            yield running
        return
    described = request(pytestconfig.stash[_OWNER], "stack")
    with Stack.attached(SharedPlane(described, worker), described["processes"], worker) as running:
        yield running
