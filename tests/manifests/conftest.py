"""A control plane of these tests' own, with manifests/base applied, and pods' claims that can be bound."""

from collections.abc import Iterator

import pytest

from tests.manifests.rights import bind_actors
from tests.manifests.trees import BASE
from tests.tools.plane import Plane
from tests.tools.plane.fixtures import pytest_collection_finish

__all__ = ["pytest_collection_finish"]

# The plane has no provisioner of volumes; a cluster's default StorageClass would make this one.
LEDGER_VOLUME = {
    "apiVersion": "v1",
    "kind": "PersistentVolume",
    "metadata": {"name": "ledger"},
    "spec": {
        "capacity": {"storage": "10Gi"},
        "accessModes": ["ReadWriteOnce"],
        "hostPath": {"path": "/nowhere"},
    },
}


@pytest.fixture(scope="package")
def plane() -> Iterator[Plane]:
    """A plane to install on; the samples and roles that these tests apply would disturb others."""
    with Plane.start(nodes=2) as running:
        yield running


@pytest.fixture(scope="package")
def installed(plane: Plane) -> Plane:
    """The plane with manifests/base. Fails on any warning, such as one of Pod Security."""
    plane.apply(LEDGER_VOLUME)
    plane.kubectl("apply", "--server-side", "--warnings-as-errors", "-k", str(BASE))
    plane.kubectl("wait", "crd", "--all", "--for=condition=Established", "--timeout=60s")
    return plane


@pytest.fixture(scope="package")
def actors(installed: Plane) -> Plane:
    """The installed plane with a team's namespace, and somebody in each role."""
    bind_actors(installed)
    return installed
