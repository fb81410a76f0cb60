"""What a conftest.py imports to give its tests a plane:

    from tests.tools.plane.fixtures import cluster, plane, pytest_collection_finish  # noqa: F401

The plane is one per test session; tests keep apart by namespaces of their own.
"""

import os
from collections.abc import Iterator

import pytest

from .binaries import ensure_built
from .cluster import Cluster
from .clusters import open_cluster
from .plane import Plane

NODES = 3


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the binaries before the first test, if a collected one needs them.

    Not in the fixture: the minutes that it takes would count against that test's timeout, and pytest would
    keep the progress to itself.
    """
    if session.config.option.collectonly:
        return
    needed = {"plane"} if os.environ.get("CLUSTER", "plane") != "plane" else {"plane", "cluster"}
    if any(needed.intersection(getattr(item, "fixturenames", ())) for item in session.items):
        capture = session.config.pluginmanager.getplugin("capturemanager")
        if capture is None:
            ensure_built()
            return
        with capture.global_and_fixture_disabled():
            ensure_built()


@pytest.fixture(scope="session")
def plane() -> Iterator[Plane]:
    """A running control plane with three simulated nodes."""
    with Plane.start(nodes=NODES) as running:
        yield running


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """What CLUSTER names: the session's plane, or kind, or the user's current context."""
    if os.environ.get("CLUSTER", "plane") == "plane":
        yield request.getfixturevalue("plane")
        return
    with open_cluster() as running:
        yield running
