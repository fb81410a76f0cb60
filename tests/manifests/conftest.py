"""The shared control plane with manifests/base applied, and a volume for the meter's claim."""

import contextlib
import fcntl
from collections.abc import Iterator

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


@contextlib.contextmanager
def one_worker(plane: Cluster) -> Iterator[None]:
    """Keep the other workers out. They share the plane, and two that create one object at once fail."""
    with (plane.directory.parent / "manifests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="package")
def installed(plane: Cluster) -> Cluster:
    """The plane with manifests/base. Fails on any warning, such as one of Pod Security."""
    with one_worker(plane):
        plane.apply(LEDGER_VOLUME)
        plane.kubectl("apply", "--server-side", "--warnings-as-errors", "-k", str(BASE))
        plane.kubectl("wait", "crd", "--all", "--for=condition=Established", "--timeout=60s")
    return plane


@pytest.fixture(scope="package")
def actors(installed: Cluster) -> Cluster:
    """The installed plane with a team's namespace, and somebody in each role."""
    with one_worker(installed):
        bind_actors(installed)
    return installed
