"""Fixtures for all tests: the control plane, and Farebox running on a cluster."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.postgres import FAST, Postgres
from tests.support.stack import Stack
from tests.tools.plane.cluster import Cluster
from tests.tools.plane.fixtures import cluster, plane, pytest_collection_finish

__all__ = ["cluster", "plane", "postgres", "pytest_collection_finish", "stack"]

# Machines that run this are shared and slow at times: how long an example takes says nothing about Farebox.
settings.register_profile("farebox", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("farebox")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first: with several workers (`make test`) all wait for the last file."""
    slow = {item.path for item in items if "plane" in _fixtures(item) or item.get_closest_marker("timeout")}
    items.sort(key=lambda item: item.path not in slow)


def _fixtures(item: pytest.Item) -> list[str]:
    names: list[str] = getattr(item, "fixturenames", [])
    return names


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for all tests of the session; each makes databases of its own."""
    with Postgres.started(**FAST) as server:
        yield server


@pytest.fixture(scope="session")
def stack(cluster: Cluster) -> Iterator[Stack]:
    """Farebox on the cluster that CLUSTER names: one operator and a meter, for all tests of the session.

    Tests keep apart by namespaces of their own. Those that kill processes or hold pods start a plane and a
    Stack for themselves.
    """
    with Stack.start(cluster) as running:
        yield running
