"""A real Kubernetes control plane without containers: stock binaries, simulated nodes and pods (kwok).

Never keeps anything alive by itself: the processes belong to a supervisor (`supervisor.py`), which ends
them when this process is gone, unless `detach` was called.
"""

import contextlib
import http.client
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from . import certs, components, kwok, places, ports
from .admin import Admin
from .binaries import ensure_built
from .cluster import Cluster, write_kubeconfig, write_private
from .components import API_SERVER, CONTROLLER_MANAGER, ETCD, KWOK, SCHEDULER, Layout
from .errors import PlaneError
from .processes import Processes

START_SECONDS = 60.0
START_ATTEMPTS = 3
POLL_SECONDS = 0.02
NO_ANSWER = (OSError, http.client.HTTPException)


class _PortTaken(PlaneError):
    """A component found its port in use; other ports may be free."""


class Plane(Cluster):
    """One running control plane; use as a context manager, or call `stop`.

    Attributes beside those of `Cluster`:
        directory: certificates, data, logs/<component>.log.
    """

    simulated = True

    def __init__(self, layout: Layout, processes: Processes) -> None:
        self._layout = layout
        self._processes = processes
        self._admin = Admin(layout.api_port, layout.pki)
        self._nodes = 0
        self._killed: set[str] = set()
        self.directory = layout.directory
        self.kubeconfig = layout.kubeconfig(certs.ADMIN)
        self.kubectl_program = layout.binaries.path("kubectl")

    @classmethod
    def start(cls, directory: Path | None = None, nodes: int = 1) -> Self:
        """Start a control plane, and return when nodes are ready and pods can be created.

        Builds the binaries first if they are not cached, which takes minutes.

        Args:
            directory: where it lives; kept at the end, and continued with its data by the next start there.
                None: a temporary one, removed at the end, even after a crash of this process.
            nodes: simulated nodes to begin with.

        Raises:
            PlaneError: it did not come up; the message ends with the log of the component to blame.
        """
        ensure_built()
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                return cls._start_once(directory, nodes)
            except _PortTaken:
                if attempt == START_ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    @classmethod
    def _start_once(cls, directory: Path | None, nodes: int) -> Self:
        place, lock = places.new_temporary() if directory is None else places.given(directory)
        try:
            with ports.reserved(3) as held:
                layout = Layout(place, ensure_built(), *map(ports.number, held))
                after_use = "remove" if directory is None else "keep"
                _write_files(layout)
                processes = Processes(place, after_use, lock, held)
        except BaseException:
            if directory is None:
                shutil.rmtree(place, ignore_errors=True)
            raise
        finally:
            os.close(lock)
        plane = cls(layout, processes)
        try:
            plane._bring_up(nodes)
        except BaseException:
            plane.stop()
            raise
        return plane

    def _bring_up(self, nodes: int) -> None:
        for name in (ETCD, API_SERVER):
            self._launch(name)
        self._wait_until("the API server is ready", API_SERVER, self._is_ready)
        # Not before: without an answer they would sleep for a second or more before they ask again.
        for name in (CONTROLLER_MANAGER, SCHEDULER, KWOK):
            self._launch(name)
        if nodes:
            self.add_nodes(nodes)
        self._wait_until("ServiceAccounts are made", CONTROLLER_MANAGER, self._has_default_service_account)
        write_private(
            self.directory / "plane.json",
            json.dumps(
                {
                    "pid": self._processes.pid,
                    "server": self._layout.server,
                    "kubeconfig": str(self.kubeconfig),
                }
            ),
        )

    @property
    def server(self) -> str:
        return self._layout.server

    def add_nodes(self, count: int, cpu: str = "1k", memory: str = "4Ti", gpus: int = 0) -> None:
        """Add simulated nodes `node-1`, `node-2`, ... and return when they are ready for pods.

        Args:
            count: how many.
            cpu, memory: capacity of each, as Kubernetes quantities.
            gpus: `nvidia.com/gpu` of each.
        """
        capacity = {"cpu": cpu, "memory": memory, "pods": "100k", "ephemeral-storage": "4Ti"}
        if gpus:
            capacity["nvidia.com/gpu"] = str(gpus)
        for _ in range(count):
            self._nodes += 1
            self._create("/api/v1/nodes", _node(f"node-{self._nodes}", capacity))
        self._wait_until("all nodes are ready", KWOK, self._nodes_are_ready)

    def kill_apiserver(self) -> None:
        """SIGKILL; returns when it is gone. Its port stays reserved: connections are refused."""
        self._killed.add(API_SERVER)
        self._processes.send_signal(API_SERVER, signal.SIGKILL)

    def restart_apiserver(self) -> None:
        """Start it again after `kill_apiserver`, on the same port and data; returns when it is ready."""
        self._launch(API_SERVER)
        self._wait_until("the API server is ready", API_SERVER, self._is_ready)

    def pause_apiserver(self) -> None:
        """SIGSTOP: connections are still accepted by the kernel, and no request is answered."""
        self._processes.send_signal(API_SERVER, signal.SIGSTOP)

    def resume_apiserver(self) -> None:
        """SIGCONT: what was waiting is answered now."""
        self._processes.send_signal(API_SERVER, signal.SIGCONT)

    def detach(self) -> int:
        """Leave it running when this process ends.

        Returns:
            the process id to send SIGTERM to; `python -m tests.tools.plane down DIRECTORY` does it.
        """
        return self._processes.detach()

    def stop(self) -> None:
        """Stop all processes; remove the directory if it is a temporary one. Safe to call twice."""
        self._processes.stop()

    def close(self) -> None:
        self.stop()

    def load_image(self, name: str) -> str:
        """Nothing to do: no program runs in a simulated pod."""
        return ""

    def explain_failure(self) -> str:
        try:
            dead = self._processes.dead()
        except PlaneError as error:
            return f"\n{error}"
        return "".join(
            f"\n{name} was killed by this test" if name in self._killed else f"\n{self._died(name, code)}"
            for name, code in dead.items()
        )

    def _launch(self, name: str) -> None:
        self._killed.discard(name)
        self._processes.start(name, components.command(name, self._layout))

    def _create(self, path: str, body: dict[str, object]) -> None:
        status, answer = self._admin.call("POST", path, body)
        # A plane that continues in a directory of its own has its nodes already.
        if status not in (http.client.CREATED, http.client.CONFLICT):
            raise PlaneError(f"POST {path}: {status} {answer.decode(errors='replace')}")

    def _wait_until(self, what: str, responsible: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(*NO_ANSWER):
                if condition():
                    return
            for name, code in self._processes.dead().items():
                kind = _PortTaken if "address already in use" in self._processes.tail(name) else PlaneError
                raise kind(self._died(name, code))
            if time.monotonic() > deadline:
                raise PlaneError(
                    f"waited {START_SECONDS:.0f} s in vain until {what}; the end of "
                    f"{self._processes.log(responsible)}:\n{self._processes.tail(responsible)}"
                )
            time.sleep(POLL_SECONDS)

    def _died(self, name: str, code: int) -> str:
        return (
            f"{name} ended with {_exit_words(code)}; the end of {self._processes.log(name)}:\n"
            f"{self._processes.tail(name)}"
        )

    def _is_ready(self) -> bool:
        return self._admin.call("GET", "/readyz")[0] == http.client.OK

    def _has_default_service_account(self) -> bool:
        # Pods are refused without it, and a Deployment made a moment too early waits for its next try.
        path = "/api/v1/namespaces/default/serviceaccounts/default"
        return self._admin.call("GET", path)[0] == http.client.OK

    def _nodes_are_ready(self) -> bool:
        status, answer = self._admin.call("GET", "/api/v1/nodes")
        if status != http.client.OK:
            return False
        nodes = json.loads(answer)["items"]
        return len(nodes) >= self._nodes and all(map(_takes_pods, nodes))


def supervisor_of(directory: Path) -> int:
    """The process id to send SIGTERM to, to stop the plane that runs in `directory`."""
    try:
        return int(json.loads((directory / "plane.json").read_text())["pid"])
    except (OSError, ValueError, KeyError) as error:
        raise PlaneError(f"{directory} holds no plane: {error}") from error


def _write_files(layout: Layout) -> None:
    certs.create_pki(layout.pki)
    authority = certs.base64_of(layout.pki / "ca.crt")
    for client in certs.CLIENTS:
        write_kubeconfig(
            layout.kubeconfig(client),
            {"server": layout.server, "certificate-authority-data": authority},
            client,
            {
                "client-certificate-data": certs.base64_of(layout.pki / f"{client}.crt"),
                "client-key-data": certs.base64_of(layout.pki / f"{client}.key"),
            },
        )
    kwok.write_configuration(layout.binaries.kwok_stages, layout.stages)


def _node(name: str, capacity: dict[str, str]) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "type": "kwok",
            },
        },
        "status": {"capacity": capacity, "allocatable": capacity},
    }


def _takes_pods(node: dict[str, Any]) -> bool:
    conditions = node["status"].get("conditions", [])
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and not node["spec"].get("taints")


def _exit_words(code: int) -> str:
    return f"exit status {code}" if code >= 0 else signal.Signals(-code).name
