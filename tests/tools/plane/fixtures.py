"""What a conftest.py imports so that the binaries of the control plane are built before the first test."""

import os

import pytest

from .binaries import Binaries, ensure_built


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the binaries before the first test, if a collected one needs them.

    Not in the fixture: the minutes that it takes would count against that test's timeout, and pytest would
    keep the progress to itself.
    """
    if session.config.option.collectonly:
        return
    needed = {"binaries", "plane"}
    if os.environ.get("CLUSTER", "plane") == "plane":
        needed.add("cluster")
    if any(needed.intersection(getattr(item, "fixturenames", ())) for item in session.items):
        capture = session.config.pluginmanager.getplugin("capturemanager")
        if capture is None:
            ensure_built()
            return
        with capture.global_and_fixture_disabled():
            ensure_built()


@pytest.fixture(scope="session")
def binaries() -> Binaries:
    """The programs of the control plane, for tests that start planes of their own."""
    return ensure_built()
