"""The shared control plane with manifests/base applied, and a volume for the meter's claim."""

import pytest

from tests.manifests.rights import bind_actors
from tests.manifests.trees import BASE
from tests.tools.plane import Cluster

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
def installed(plane: Cluster) -> Cluster:
    """The plane with manifests/base. Fails on any warning, such as one of Pod Security."""
    plane.apply(LEDGER_VOLUME)
    plane.kubectl("apply", "--server-side", "--warnings-as-errors", "-k", str(BASE))
    plane.kubectl("wait", "crd", "--all", "--for=condition=Established", "--timeout=60s")
    return plane


@pytest.fixture(scope="package")
def actors(installed: Cluster) -> Cluster:
    """The installed plane with a team's namespace, and somebody in each role."""
    bind_actors(installed)
    return installed
