"""Farebox's own pods on a cluster that runs programs: installed from the manifests, reached, and looked into.

Everything here asks the cluster; what runs in the pods is not this machine's.
"""

import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.support.ports import free_port
from tests.tools.plane.cluster import Cluster
from tests.tools.plane.errors import KubectlError

BASE = Path(__file__).parents[2] / "manifests/base"
SYSTEM = "farebox-system"
WORKLOADS = ("statefulset/farebox-meter", "deployment/farebox-operator", "deployment/farebox-gateway")
IMAGE_ANNOTATION = "farebox.dev/test-image"
_ROLLOUT_SECONDS = 300
"""From the first apply to all pods ready: a small machine starts seven programs at once."""


class Pods:
    """The pods of farebox-system. `close` ends what forwards to them."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._forwards: list[Forward] = []

    def install(self, image: str, identity: str) -> None:
        """Apply manifests/base with this image.

        Args:
            image: its name, in the place of farebox:dev.
            identity: what is behind that name now; another one replaces the pods under the same name.
                "" where nobody knows.
        """
        built = self._cluster.kubectl("kustomize", str(BASE))
        documents = with_image(list(yaml.safe_load_all(built)), image, identity)
        self._cluster.kubectl("apply", "--server-side", "-f", "-", input=yaml.safe_dump_all(documents))

    def wait_ready(self) -> None:
        """Wait until all are rolled out. Raises KubectlError with what the cluster says of the pods."""
        for workload in WORKLOADS:
            try:
                self._cluster.kubectl(
                    *("rollout", "status", workload, f"--namespace={SYSTEM}"),
                    f"--timeout={_ROLLOUT_SECONDS}s",
                    seconds=_ROLLOUT_SECONDS + 30.0,
                )
            except KubectlError as error:
                raise KubectlError(error.arguments, error.code, f"{error.stderr}\n{self.explain()}") from None

    def forward(self, component: str, port: int) -> str:
        """Where a component's port is reached from here; follows it when its pod is replaced."""
        forward = Forward(self, port, lambda: self.ready(component))
        self._forwards.append(forward)
        return forward.url

    def forward_to(self, pod: str, port: int) -> str:
        """Where a port of one pod is reached from here."""
        forward = Forward(self, port, lambda: pod)
        self._forwards.append(forward)
        return forward.url

    def ready(self, component: str) -> str:
        """The name of a pod of the component that is ready and stays. Raises LookupError without one."""
        for pod in self._pods(component):
            conditions = {item["type"]: item["status"] for item in pod["status"].get("conditions", [])}
            if "deletionTimestamp" not in pod["metadata"] and conditions.get("Ready") == "True":
                return str(pod["metadata"]["name"])
        raise LookupError(f"no pod of the {component} is ready")

    def logs(self, component: str) -> str:
        """What its pods have printed, all containers."""
        return "".join(
            self._cluster.kubectl(
                "logs", pod["metadata"]["name"], f"--namespace={SYSTEM}", "--all-containers", "--tail=-1"
            )
            for pod in self._pods(component)
        )

    def explain(self) -> str:
        """Pods, their last Events, and the ends of the logs of those that are not ready."""
        said = [
            self._try("get", "pods", "-o=wide"),
            "\n".join(self._try("get", "events", "--sort-by=.lastTimestamp").splitlines()[-25:]),
        ]
        for pod in self._pods():
            conditions = {item["type"]: item["status"] for item in pod["status"].get("conditions", [])}
            if conditions.get("Ready") != "True":
                name = pod["metadata"]["name"]
                said.append(f"--- {name} ---")
                said.append(self._try("logs", name, "--all-containers", "--prefix", "--tail=15"))
        return "\n".join(said)

    def command(self, *arguments: str) -> list[str]:
        """A kubectl command in the namespace, to be run by the caller."""
        program, kubeconfig = self._cluster.kubectl_program, self._cluster.kubeconfig
        return [str(program), f"--kubeconfig={kubeconfig}", f"--namespace={SYSTEM}", *arguments]

    def close(self) -> None:
        """End all forwards."""
        for forward in self._forwards:
            forward.close()

    def _try(self, *arguments: str) -> str:
        return self._cluster.kubectl(*arguments, f"--namespace={SYSTEM}", check=False)

    def _pods(self, component: str = "") -> list[dict[str, Any]]:
        selector = "app.kubernetes.io/name=farebox"
        if component:
            selector += f",app.kubernetes.io/component={component}"
        found = self._cluster.kubectl("get", "pods", f"-n={SYSTEM}", f"--selector={selector}", "-o=json")
        items: list[dict[str, Any]] = json.loads(found)["items"]
        return items


class Forward:
    """`kubectl port-forward` to a pod, restarted when it ends, as it does with each pod that goes."""

    def __init__(self, pods: Pods, port: int, choose: Callable[[], str]) -> None:
        self._pods = pods
        self._port = port
        self._choose = choose
        self._local = free_port()
        self.url = f"http://127.0.0.1:{self._local}"
        self._closing = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"forward-{self._local}")
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._closing.set()
        if self._process is not None:
            self._process.terminate()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                pod = self._choose()
            except LookupError:
                self._closing.wait(0.5)
                continue
            arguments = self._pods.command("port-forward", f"pod/{pod}", f"{self._local}:{self._port}")
            self._process = subprocess.Popen(
                arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            if self._closing.is_set():
                self._process.terminate()
            self._process.wait()
            self._closing.wait(0.2)


def with_image(documents: list[dict[str, Any]], image: str, identity: str) -> list[dict[str, Any]]:
    """The manifests with another image in the place of farebox:dev, wherever one is named."""
    replaced: list[dict[str, Any]] = _replaced(documents, image)
    for document in replaced:
        if identity and document["kind"] in ("Deployment", "StatefulSet"):
            metadata = document["spec"]["template"]["metadata"]
            metadata.setdefault("annotations", {})[IMAGE_ANNOTATION] = identity
    return replaced


def _replaced(value: Any, image: str) -> Any:
    if isinstance(value, dict):
        return {
            key: image if key == "image" and item == "farebox:dev" else _replaced(item, image)
            for key, item in value.items()
        }
    return [_replaced(item, image) for item in value] if isinstance(value, list) else value
