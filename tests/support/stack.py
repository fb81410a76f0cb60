"""Farebox on a cluster: the very manifests that users apply, and the operator and the meter running.

On the simulated plane pods run no program, so operator and meter are processes here, each with the token of
its ServiceAccount from the manifests; elsewhere they run from the image.
"""

import json
import os
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from farebox.api import GROUP, KINDS
from farebox.kube.names import lease_path
from tests.support.api import Api
from tests.support.gateway import Gateway
from tests.support.pods import SYSTEM, Pods
from tests.support.ports import free_port
from tests.support.processes import Endpoint, Process, get
from tests.support.waiting import wait_for
from tests.tools.plane.cluster import Cluster

REPOSITORY = Path(__file__).parents[2]
BACKENDS = "farebox-models"
IMAGE = os.environ.get("IMAGE") or "farebox:dev"
"""What runs in pods; another name where the nodes pull from a registry (CLUSTER=current)."""
AUDIENCE = "farebox-meter"


class Stack:
    """Farebox, running. Make it with `start`; use it as a context manager."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory
        self.api = Api(cluster.kubeconfig)
        self.operators: list[Process] = []
        self.meter: Process | None = None
        self.meter_url = ""
        self.gateways: list[Gateway] = []
        self.simulators: list[Process] = []
        self.pods = Pods(cluster)
        # Where processes run that another process started.
        self._remote: dict[str, Endpoint] = {}
        self._usage_token = ""
        self._suffix = ""
        self._urls: dict[str, str] = {}

    @classmethod
    def start(cls, cluster: Cluster, directory: Path | None = None, operators: int = 1) -> "Stack":
        """Apply manifests/base and start Farebox; returns when it acts.

        Args:
            directory: for logs, tokens and the ledger; default: the cluster's own.
            operators: replicas of the operator on the simulated plane.
        """
        stack = cls(cluster, directory or cluster.directory)
        try:
            stack.apply_manifests()
            if cluster.simulated:
                stack.start_meter()
                for _ in range(operators):
                    stack.start_operator()
            else:
                stack._wait_for_rollout()
        except BaseException:
            stack.close()
            raise
        return stack

    @classmethod
    def attached(cls, cluster: Cluster, endpoints: Mapping[str, Mapping[str, Any]], worker: str) -> "Stack":
        """A Farebox that another process started, from its `endpoints`; `close` leaves it running.

        Args:
            worker: distinguishes the gateways that are started here from those of other users.
        """
        stack = cls(cluster, cluster.directory)
        stack._remote = {
            component: Endpoint(found["name"], found["port"], Path(found["log"]))
            for component, found in endpoints.items()
        }
        stack.meter_url = stack._remote["meter"].url
        stack._suffix = f"-{worker}"
        return stack

    def endpoints(self) -> dict[str, dict[str, Any]]:
        """The acting operator and the meter, for `attached` in another process."""
        assert self.meter is not None
        running = {"operator": self.operator, "meter": self.meter}
        return {
            component: {"name": process.name, "port": process.port, "log": str(process.log)}
            for component, process in running.items()
        }

    def apply_manifests(self) -> None:
        """kubectl apply -k manifests/base, and wait until the kinds are served."""
        if self.cluster.simulated:
            self.cluster.kubectl("apply", "--server-side", "-k", str(REPOSITORY / "manifests/base"))
        else:
            self.pods.install(IMAGE, self.cluster.load_image(IMAGE))
        crds = [f"crd/{info.plural}.{GROUP}" for info in KINDS.values()]
        self.cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", *crds)

    def start_meter(self, port: int | None = None) -> Process:
        """The meter as a process, with the token of its ServiceAccount and the ledger in `directory`."""
        port = port or (self.meter.port if self.meter else free_port())
        env = self._common_env("farebox-meter") | {
            "FAREBOX_LEDGER_URL": f"sqlite:///{self.directory / 'ledger.db'}",
            "FAREBOX_LISTEN_HOST": "127.0.0.1",
            "FAREBOX_LISTEN_PORT": str(port),
        }
        self.meter = Process("meter", "meter", self.directory, env, port)
        self.meter.wait_ready()
        self.meter_url = self.meter.url
        return self.meter

    def start_operator(self, **env: str) -> Process:
        """One more operator as a process, with the token of its ServiceAccount."""
        token_file = self.directory / "operator-meter-token"
        if not token_file.exists():
            token = self.cluster.service_account_token(SYSTEM, "farebox-operator", audience=AUDIENCE)
            token_file.touch(mode=0o600)
            token_file.write_text(token)
        port = free_port()
        settings = self._common_env("farebox-operator") | {
            "FAREBOX_METER_URL": self.meter_url,
            "FAREBOX_METER_TOKEN_FILE": str(token_file),
            "FAREBOX_LISTEN_HOST": "127.0.0.1",
            "FAREBOX_LISTEN_PORT": str(port),
            "FAREBOX_SYSTEM_NAMESPACE": SYSTEM,
            "FAREBOX_BACKEND_NAMESPACE": BACKENDS,
        }
        name = f"operator-{len(self.operators) + 1}"
        operator = Process(name, "operator", self.directory, settings | env, port)
        self.operators.append(operator)
        operator.wait_ready()
        return operator

    def start_gateway(self, upstream: str, **env: str) -> Gateway:
        """A gateway with an Envoy of its own, with the token of its ServiceAccount.

        Args:
            upstream: host:port that plays every backend, as simulated pods serve nothing.
        """
        name = f"gateway-{len(self.gateways) + 1}{self._suffix}"
        # Not in `directory`, whose name may be too long for a socket in it.
        directory = Path(tempfile.mkdtemp(prefix="farebox-gw-"))
        token_file = directory / "meter-token"
        token_file.touch(mode=0o600)
        token_file.write_text(self.usage_token())
        calls, health = free_port(), free_port()
        settings = self._common_env("farebox-gateway") | {
            "FAREBOX_METER_URL": self.meter_url,
            "FAREBOX_METER_TOKEN_FILE": str(token_file),
            "FAREBOX_BACKEND_NAMESPACE": BACKENDS,
            "FAREBOX_GATEWAY_DIRECTORY": str(directory),
            "FAREBOX_IDENTITY": name,
            "FAREBOX_LISTEN_HOST": "127.0.0.1",
            "FAREBOX_LISTEN_PORT": str(calls),
            "FAREBOX_HEALTH_PORT": str(health),
            "FAREBOX_BACKEND_ADDRESS": upstream,
            "FAREBOX_LINGER_SECONDS": "0",
        }
        gateway = Gateway(name, directory, self.directory, calls, health, settings | env)
        self.gateways.append(gateway)
        gateway.start()
        return gateway

    def gateway_url(self) -> str:
        """Where calls are taken: on the simulated plane by one more gateway that is started for it."""
        if self.cluster.simulated:
            simulator = self.start_simulator("--ttft-ms 20 --tokens-per-second 500")
            # Envoy ends with the process that started it, and this one may leave the gateway running.
            return self.start_gateway(f"127.0.0.1:{simulator.port}", FAREBOX_RUN_ENVOY="true").url
        url = self.pods.forward("gateway", 8080)
        wait_for("the gateway answers", lambda: _answers(f"{url}/healthz"), 60)
        return url

    def start_simulator(self, *options: str) -> Process:
        """A model server that plays every model; its `port` is where it answers."""
        port = free_port()
        command = " ".join(["simulator --host 127.0.0.1 --model *", f"--port {port}", *options])
        # It reads none of this; by its environment a demo that was kept finds its processes again.
        env = {"FAREBOX_KUBECONFIG": str(self.cluster.kubeconfig)}
        process = Process(f"simulator-{port}", command, self.directory, env, port)
        self.simulators.append(process)
        wait_for("the simulator answers", lambda: process.http("/health")[0] == 200, 60)
        return process

    def processes(self) -> list[Process]:
        """All that were started here; a gateway before what it asks."""
        gateways = [process for gateway in self.gateways for process in gateway.processes()]
        return [*gateways, *self.simulators, *self.operators, *([self.meter] if self.meter else [])]

    def http(self, component: str, path: str) -> tuple[int, str]:
        """GET a path of the acting operator, or of the meter: status and body; OSError without an answer."""
        if self.cluster.simulated:
            return self._endpoint(component).http(path)
        if component not in self._urls:
            self._urls[component] = (
                self.meter_url if component == "meter" else self.pods.forward_to(self._leader(), 8080)
            )
        return get(f"{self._urls[component]}{path}")

    def logs(self, component: str) -> str:
        """What the operators, or the meter, have printed."""
        if not self.cluster.simulated:
            return self.pods.logs(component)
        processes = (
            self.operators if self.operators and component == "operator" else [self._endpoint(component)]
        )
        return "".join(process.log.read_text() for process in processes)

    def _endpoint(self, component: str) -> Endpoint:
        if component in self._remote:
            return self._remote[component]
        process = self.operator if component == "operator" else self.meter
        assert process is not None, f"no {component} was started"
        return process

    def _leader(self) -> str:
        """The pod that holds the Lease: its name is the host's, to which the holder adds a random part."""
        holder: str = self.api.get(lease_path(SYSTEM, "farebox-operator"))["spec"]["holderIdentity"]
        return holder.rpartition("_")[0]

    @property
    def operator(self) -> Process:
        """The operator that was started last."""
        return self.operators[-1]

    def charge(self, service: str, model: str, input_tokens: int = 0, output_tokens: int = 0) -> None:
        """One call's usage, as a gateway posts it; `service` is namespace/name."""
        result = self.post_usage([usage_event(service, model, input_tokens, output_tokens)])
        assert result["accepted"] == 1, result

    def post_usage(self, events: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """POST /v1/events with the gateway's ServiceAccount; returns the answer."""
        return self.call_meter(
            "POST", "/v1/events", list(events), "application/cloudevents-batch+json", self.usage_token()
        )

    def usage_token(self) -> str:
        """A token for the meter of the ServiceAccount that may post usage."""
        if not self._usage_token:
            self._usage_token = self.cluster.service_account_token(
                SYSTEM, "farebox-gateway", audience=AUDIENCE
            )
        return self._usage_token

    def call_meter(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
        token: str = "",
    ) -> dict[str, Any]:
        """One request to the meter. Raises OSError when it does not answer with 2xx."""
        request = urllib.request.Request(
            f"{self.meter_url}{path}",
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"Content-Type": content_type, "Authorization": f"Bearer {token}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                answer: dict[str, Any] = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            raise OSError(f"{method} {path}: HTTP {error.code}: {error.read().decode()}") from None

    def close(self) -> None:
        """Stop the processes that were started here; the cluster is left to its owner."""
        for gateway in self.gateways:
            gateway.stop()
        for process in [*self.simulators, *self.operators, *([self.meter] if self.meter else [])]:
            if process.running():
                process.stop()
        self.pods.close()

    def __enter__(self) -> "Stack":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _common_env(self, account: str) -> dict[str, str]:
        kubeconfig = self.cluster.service_account_kubeconfig(SYSTEM, account)
        return {
            "FAREBOX_KUBECONFIG": str(kubeconfig),
            "FAREBOX_LOG_LEVEL": os.environ.get("FAREBOX_LOG_LEVEL", "INFO"),
        }

    def _wait_for_rollout(self) -> None:
        self.pods.wait_ready()
        self.meter_url = self.pods.forward("meter", 8090)
        wait_for("the meter answers", lambda: _answers(f"{self.meter_url}/healthz"), 60)


def _answers(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=10) as response:
        return bool(response.status == 200)


def usage_event(
    service: str,
    model: str,
    input_tokens: int = 0,
    output_tokens: int = 0,
    cached_input_tokens: int = 0,
    cache_write_input_tokens: int = 0,
) -> dict[str, Any]:
    """A CloudEvent about one call, with an id of its own."""
    return {
        "specversion": "1.0",
        "type": "dev.farebox.usage.v1",
        "source": "tests",
        "id": uuid.uuid4().hex,
        "subject": service,
        "time": datetime.now(UTC).isoformat(),
        "datacontenttype": "application/json",
        "data": {
            "model": model,
            "apiKey": "tests",
            "inputTokens": input_tokens,
            "cachedInputTokens": cached_input_tokens,
            "cacheWriteInputTokens": cache_write_input_tokens,
            "outputTokens": output_tokens,
            "requestId": uuid.uuid4().hex,
            "status": 200,
        },
    }
