"""Chooses the cluster that the demo and the integration tests run on: CLUSTER=plane | kind | current.

Never deletes a cluster that it did not start: a kind cluster stays for the next run, and the user's current
one is written to only after a yes.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from .binaries import built
from .cluster import Cluster, write_private
from .errors import PlaneError
from .plane import Plane

KIND_CLUSTER = "farebox"
KIND_CONFIG = Path(__file__).with_name("kind.yaml")
KIND_WAIT = "180s"
REPOSITORY = Path(__file__).parents[3]
PLANE_NODES = 3


def open_cluster(kind: str | None = None) -> Cluster:
    """Open the cluster to run on.

    Args:
        kind: `plane` (a control plane of its own, started here), `kind` (a cluster `farebox` in Docker, made
            if absent) or `current` (the current context of the user's kubeconfig, after a yes).
            None: what the environment variable CLUSTER says, or `plane`.

    Raises:
        PlaneError: something needed is missing; the sentence says what to install or do.
    """
    name = kind or os.environ.get("CLUSTER") or "plane"
    openers: dict[str, Callable[[], Cluster]] = {
        "plane": lambda: Plane.start(nodes=PLANE_NODES),
        "kind": KindCluster,
        "current": CurrentCluster,
    }
    if name not in openers:
        raise PlaneError(f"CLUSTER={name} is not one of {', '.join(openers)}")
    return openers[name]()


class _RealCluster(Cluster):
    """A cluster whose pods run programs; it lives on after `close`, only our files go."""

    simulated = False

    def __init__(self) -> None:
        self.kubectl_program = _find_kubectl()
        self._temporary = tempfile.TemporaryDirectory(prefix="farebox-cluster-")
        self.directory = Path(self._temporary.name)
        self.kubeconfig = self.directory / "kubeconfig"

    def close(self) -> None:
        self._temporary.cleanup()


class KindCluster(_RealCluster):
    """The kind cluster `farebox`, or what KIND_CLUSTER_NAME says (kind's own variable).

    Made if absent, left in place. The user's own kubeconfig is not touched.
    """

    def __init__(self) -> None:
        self._name = os.environ.get("KIND_CLUSTER_NAME") or KIND_CLUSTER
        _need("docker", "Docker (https://docs.docker.com/engine/install/)")
        _need("kind", "kind (https://kind.sigs.k8s.io/docs/user/quick-start/#installation)")
        _run(["docker", "info"], "Docker is installed, but its daemon does not answer; start it")
        super().__init__()
        try:
            if self._name not in _output(["kind", "get", "clusters"]).split():
                self._create()
            kubeconfig = _output(["kind", "get", "kubeconfig", "--name", self._name])
            write_private(self.kubeconfig, kubeconfig)
        except BaseException:
            self.close()
            raise

    def load_image(self, name: str) -> str:
        _run(
            ["make", f"--directory={REPOSITORY}", "load", f"IMAGE={name}", f"KIND_CLUSTER={self._name}"],
            f"the image {name} cannot be built, or not be loaded into kind",
        )
        return _output(["docker", "image", "inspect", "--format={{.Id}}", name]).strip()

    def _create(self) -> None:
        # Its own kubeconfig file: `kind create` would switch the user's current context.
        _run(
            [
                "kind",
                "create",
                "cluster",
                "--name",
                self._name,
                "--config",
                str(KIND_CONFIG),
                "--kubeconfig",
                str(self.kubeconfig),
                "--wait",
                KIND_WAIT,
            ],
            f"the kind cluster {self._name} cannot be created",
        )


class CurrentCluster(_RealCluster):
    """The current context of the user's kubeconfig, copied at the start, so a later switch changes nothing.

    Asks on the terminal before it returns; FAREBOX_YES=1 is the answer without a terminal.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            copied = _output(
                [
                    str(self.kubectl_program),
                    "config",
                    "view",
                    "--minify",
                    "--raw",
                    "--flatten",
                    "--output=json",
                ]
            )
            _confirm(json.loads(copied))
            write_private(self.kubeconfig, copied)
        except BaseException:
            self.close()
            raise

    def load_image(self, name: str) -> str:
        print(
            f"The nodes of this cluster must have the image {name}, or be able to pull it. Another name: "
            "`make image IMAGE=registry.example.com/farebox:dev`, push it, run this with the same IMAGE.",
            file=sys.stderr,
        )
        return ""


def _confirm(kubeconfig: dict[str, list[dict[str, dict[str, str]]]]) -> None:
    context = kubeconfig["current-context"]
    server = kubeconfig["clusters"][0]["cluster"]["server"]
    question = f"Farebox's objects are going to be written to the cluster of context {context!r} at {server}."
    if os.environ.get("FAREBOX_YES") == "1":
        print(f"{question} FAREBOX_YES=1: going on.", file=sys.stderr)
        return
    if not sys.stdin.isatty():
        raise PlaneError(f"{question} There is no terminal to ask on; set FAREBOX_YES=1 to say yes.")
    print(f"{question}\nType yes to go on: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() != "yes":
        raise PlaneError("nothing was written")


def _find_kubectl() -> Path:
    found = shutil.which("kubectl")
    if found is not None:
        return Path(found)
    ours = built().path("kubectl")
    if ours.exists():
        return ours
    raise PlaneError(
        "kubectl is missing; install it (https://kubernetes.io/docs/tasks/tools/), "
        "or run `python -m tests.tools.plane build`, which makes one"
    )


def _need(program: str, what: str) -> None:
    if shutil.which(program) is None:
        raise PlaneError(
            f"CLUSTER=kind needs {what}, and `{program}` is not on PATH. "
            "CLUSTER=plane needs neither Docker nor kind."
        )


def _run(command: list[str], complaint: str) -> None:
    """Run with the output on our stderr, so that minutes of building are seen; `docker info` stays quiet."""
    quiet = subprocess.DEVNULL if command[1:] == ["info"] else sys.stderr
    run = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=quiet, stderr=sys.stderr, check=False)
    if run.returncode != 0:
        raise PlaneError(f"{complaint} (`{' '.join(command)}`: exit status {run.returncode})")


def _output(command: list[str]) -> str:
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise PlaneError(f"`{' '.join(command[:4])}`: exit status {run.returncode}\n{run.stderr.strip()}")
    return run.stdout
