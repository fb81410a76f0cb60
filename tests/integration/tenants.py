"""A tenant of one test: a namespace with accounts, services and top-ups, and models that nobody else uses.

Every name is new, so any number of tests share one Farebox. What is looked at is what a user sees: the API
server's objects. Nothing here looks into the operator.
"""

import json
import uuid
from collections.abc import Iterable
from typing import Any

from farebox.domain.keys import ObjectKey
from farebox.kube.names import core_path, dedicated_backend_name, deployment_path, shared_backend_name
from tests.support.api import JSONObject, manifest, path_of
from tests.support.stack import BACKENDS, IMAGE, Stack
from tests.support.waiting import wait_for
from tests.tools.plane import HOLD_ANNOTATION

SECONDS = 60.0
"""How long a test waits for what takes a fraction of a second on a quiet machine."""

HOLD_GATE = "farebox.dev/test-released"
"""The readiness gate of held pods."""

TOKENS_PER_UNIT = 1_000_000
"""Input tokens that cost 1.00 at the price of these models."""

TIERS = [{"input": "1.000", "cachedInput": "0.100", "output": "2.000"}]


def template(hold: bool = False, version: str = "first", **spec: Any) -> JSONObject:
    """A pod template, which works where pods run programs too.

    Args:
        hold: its pods are not ready until they are released; kwok reads the annotation, a kubelet the gate.
        version: something to tell one template from another by.
    """
    server = {
        "name": "server",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "args": ["simulator", "--model=*"],
        "env": [{"name": "VERSION", "value": version}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 1},
    }
    held = {"readinessGates": [{"conditionType": HOLD_GATE}]} if hold else {}
    return {
        "metadata": {"annotations": {HOLD_ANNOTATION: "true"} if hold else {}},
        "spec": {"containers": [server], **held, **spec},
    }


class Tenant:
    """A namespace and what is in it."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.api = stack.api
        self.unique = uuid.uuid4().hex[:8]
        self.namespace = f"t-{self.unique}"
        self.currency = "".join(chr(ord("A") + int(digit, 16)) for digit in self.unique[:3])
        self._models: list[str] = []
        self._namespaces: list[str] = []
        self.make_namespace(self.namespace)

    def close(self) -> None:
        """Delete what was made, without waiting for it to be gone.

        A simulated plane ends with the tests: there the namespaces stay, empty of Farebox's kinds, as the end
        of a namespace costs the control plane more CPU than many a test (tests of that end delete theirs).
        """
        for name in self._models:
            self.api.delete(path_of("Model", name=name))
        for name in self._namespaces:
            if not self.stack.cluster.simulated:
                self.api.delete(core_path("namespaces", name=name))
                continue
            # Accounts first: they would create their Default services again.
            for kind in ("BillingAccount", "InferenceService", "APIKey", "TopUp"):
                self.api.delete(path_of(kind, name))

    # -- what users write ---------------------------------------------------------------------------

    def make_namespace(self, name: str, **labels: str) -> None:
        """One more namespace."""
        self._namespaces.append(name)
        self.api.create(core_path("namespaces"), {"metadata": {"name": name, "labels": labels}})

    def model(
        self,
        name: str = "llm",
        pods: JSONObject | None = None,
        labels: dict[str, str] | None = None,
        deployment: JSONObject | None = None,
        **spec: Any,
    ) -> str:
        """Publish a model; returns its full name, which no other test has."""
        full = f"{name}-{self.unique}"
        self._models.append(full)
        serving = {"deployment": {"template": pods or template(), "drainSeconds": 0} | (deployment or {})}
        body = {"serving": serving, "prices": {"currency": self.currency, "tiers": TIERS}} | spec
        self.api.create(path_of("Model"), manifest("Model", full, body, labels=labels or {}))
        return full

    def account(self, name: str = "acme", namespace: str = "", balance: str = "", **spec: Any) -> None:
        """Open an account without Default services; with `balance` return when it can spend that."""
        namespace = namespace or self.namespace
        body = {"currency": self.currency, "defaultServices": {"models": "None"}} | spec
        self.api.create(
            path_of("BillingAccount", namespace), manifest("BillingAccount", name, body, namespace)
        )
        if balance:
            self.wait_topup(self.topup(balance, account=name, namespace=namespace), namespace=namespace)

    def topup(
        self,
        amount: str,
        account: str = "acme",
        reference: str = "",
        name: str = "",
        namespace: str = "",
        **spec: Any,
    ) -> str:
        """Create a TopUp; returns its name."""
        namespace = namespace or self.namespace
        unique = uuid.uuid4().hex[:8]
        name = name or f"topup-{unique}"
        body = {"billingAccountRef": {"name": account}, "amount": amount, "reference": reference or unique}
        self.api.create(path_of("TopUp", namespace), manifest("TopUp", name, body | spec, namespace))
        return name

    def service(
        self,
        name: str,
        model: str,
        account: str = "acme",
        replicas: int = 1,
        namespace: str = "",
        **spec: Any,
    ) -> None:
        """Create a service: dedicated and pay-as-you-go unless the spec says otherwise."""
        namespace = namespace or self.namespace
        body = {"postpaid": True, "dedicated": True, "replicas": replicas} | spec
        body = {"modelRef": {"name": model}, "billingAccountRef": {"name": account}} | body
        self.api.create(
            path_of("InferenceService", namespace), manifest("InferenceService", name, body, namespace)
        )

    def edit(self, name: str, **spec: Any) -> JSONObject:
        """Change a service's spec."""
        return self.api.patch(path_of("InferenceService", self.namespace, name), {"spec": spec})

    def edit_model(self, model: str, **spec: Any) -> None:
        """Change a model's spec."""
        self.api.patch(path_of("Model", name=model), {"spec": spec})

    def delete(self, kind: str, name: str) -> None:
        """Delete an object and wait until it is gone."""
        path = path_of(kind, "" if kind == "Model" else self.namespace, name)
        self.api.delete(path)
        wait_for(f"{kind} {name} is gone", lambda: self.api.find(path) is None, SECONDS)

    def charge(self, service: str, model: str, units: float) -> None:
        """Post usage that costs the given number of units of the currency."""
        self.stack.charge(f"{self.namespace}/{service}", model, input_tokens=round(units * TOKENS_PER_UNIT))

    def kubectl(self, *args: str, input: str | None = None) -> str:
        """kubectl as the administrator, in this namespace."""
        return self.stack.cluster.kubectl(f"--namespace={self.namespace}", *args, input=input)

    def apply(self, text: str) -> str:
        """kubectl apply of YAML."""
        return self.kubectl("apply", "-f", "-", input=text)

    # -- what users see -----------------------------------------------------------------------------

    def get(self, name: str, kind: str = "InferenceService", namespace: str = "") -> JSONObject:
        """An object; a service unless said otherwise."""
        return self.api.get(path_of(kind, "" if kind == "Model" else namespace or self.namespace, name))

    def status(self, name: str, kind: str = "InferenceService") -> JSONObject:
        """An object's status; empty when it has none."""
        status: JSONObject = self.get(name, kind).get("status") or {}
        return status

    def version(self, name: str, kind: str = "InferenceService") -> str:
        """An object's resourceVersion."""
        return str(self.get(name, kind)["metadata"]["resourceVersion"])

    def backend(self, service: str) -> JSONObject | None:
        """The Deployment of a dedicated service."""
        return self.api.find(deployment_path(BACKENDS, self.backend_name(service)))

    def backend_name(self, service: str) -> str:
        """What the backend of a dedicated service is called."""
        return dedicated_backend_name(ObjectKey(self.namespace, service))

    def shared_backend(self, model: str) -> JSONObject | None:
        """The Deployment of a model's shared services."""
        return self.api.find(deployment_path(BACKENDS, shared_backend_name(model)))

    def pods(self, backend: str) -> list[JSONObject]:
        """The pods of a backend that are not being deleted."""
        selector = f"labelSelector=farebox.dev/backend={backend}"
        items = self.api.get(f"{core_path('pods', BACKENDS)}?{selector}")["items"]
        return [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]

    def history(self, since: str, name: str) -> list[JSONObject]:
        """Every state of a service after a resourceVersion until now, oldest first, from a watch."""
        return self.history_of(path_of("InferenceService", self.namespace), since, name)

    def history_of(self, collection: str, since: str, name: str) -> list[JSONObject]:
        """The same of an object of any kind, which is there."""
        until = self.api.get(f"{collection}/{name}")["metadata"]["resourceVersion"]
        query = f"watch=1&resourceVersion={since}&timeoutSeconds=1&fieldSelector=metadata.name={name}"

        def look() -> list[JSONObject]:
            lines = self.stack.cluster.kubectl("get", "--raw", f"{collection}?{query}").splitlines()
            events = [json.loads(line) for line in lines]
            assert all(event["type"] != "ERROR" for event in events), events
            states = [event["object"] for event in events]
            # A watch ends after a second, however little a busy API server has sent by then.
            assert until in [since, *(state["metadata"]["resourceVersion"] for state in states)]
            return states

        return [] if until == since else wait_for(f"what became of {name} since {since}", look, SECONDS)

    def phases(self, since: str, name: str) -> list[str]:
        """The phases that a service went through after a resourceVersion, each once."""
        phases: list[str] = []
        for state in self.history(since, name):
            phase = (state.get("status") or {}).get("phase")
            if phase and phases[-1:] != [phase]:
                phases.append(phase)
        return phases

    # -- waiting ------------------------------------------------------------------------------------

    def wait_state(self, name: str, phase: str, *reasons: str, seconds: float = SECONDS) -> JSONObject:
        """Wait until a service has a phase and exactly these stop reasons for its spec as it is now."""

        def look() -> JSONObject:
            found = self.get(name)
            status: JSONObject = found.get("status") or {}
            assert status.get("observedGeneration") == found["metadata"]["generation"], status
            assert status.get("phase") == phase, status
            assert sorted(status["stopReasons"]) == sorted(reasons), status
            return status

        return wait_for(f"{self.namespace}/{name} is {phase} {list(reasons)}", look, seconds)

    def wait_running(self, name: str, replicas: int) -> None:
        """Wait until a dedicated service is Running and Ready with `replicas` ready pods."""
        self.wait_state(name, "Running")
        self.wait_condition(name, "Ready", "True")
        self.wait_backend(name, replicas)

    def wait_stopped(self, name: str, *reasons: str) -> None:
        """Wait until a dedicated service is Stopped for exactly these reasons and has no pods."""
        self.wait_state(name, "Stopped", *reasons)
        self.wait_backend(name, 0)

    def wait_condition(
        self, name: str, type_: str, status: str, reason: str = "", kind: str = "InferenceService"
    ) -> JSONObject:
        """Wait until a condition is so for the spec as it is now; returns it."""

        def look() -> JSONObject:
            found = self.get(name, kind)
            condition = condition_of(found, type_)
            assert condition.get("observedGeneration") == found["metadata"]["generation"], condition
            assert condition["status"] == status, condition
            assert reason in ("", condition["reason"]), condition
            return condition

        return wait_for(f"{kind} {name} has {type_}={status} {reason}", look, SECONDS)

    def wait_event(self, name: str, reason: str, type_: str, kind: str = "InferenceService") -> None:
        """Wait until an object has an Event."""
        namespace = "default" if kind == "Model" else self.namespace
        fields = f"regarding.kind={kind},regarding.name={name},reason={reason},type={type_}"
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events?fieldSelector={fields}"
        wait_for(f"{kind} {name} has an Event {reason}", lambda: self.api.get(path)["items"], SECONDS)

    def wait_backend(self, service: str, replicas: int) -> None:
        """Wait until a dedicated service's Deployment has `replicas` replicas, all ready, with their pods."""
        self._wait_replicas(self.backend_name(service), replicas)

    def wait_shared(self, model: str, replicas: int) -> None:
        """Wait until a model's shared backend has `replicas` replicas, all ready."""
        self._wait_replicas(shared_backend_name(model), replicas)

    def wait_topup(self, name: str, phase: str = "Posted", namespace: str = "") -> JSONObject:
        """Wait until a TopUp has a receipt; returns its status."""

        def look() -> JSONObject:
            status: JSONObject = self.get(name, "TopUp", namespace).get("status") or {}
            assert status.get("phase") == phase, status
            return status

        return wait_for(f"TopUp {name} is {phase}", look, SECONDS)

    def wait_account(self, name: str = "acme", **fields: Any) -> JSONObject:
        """Wait until an account's status has these fields."""

        def look() -> JSONObject:
            status = self.status(name, "BillingAccount")
            assert {field: status.get(field) for field in fields} == fields, status
            return status

        return wait_for(f"BillingAccount {name} has {fields}", look, SECONDS)

    def wait_gone(self, path: str) -> None:
        """Wait until there is nothing at a path."""
        wait_for(f"{path} is gone", lambda: self.api.find(path) is None, SECONDS)

    def release(self, backend: str, pods: int) -> None:
        """Let held pods become ready, once `pods` of them exist."""

        def look() -> list[JSONObject]:
            found = self.pods(backend)
            assert len(found) == pods, [pod["metadata"]["name"] for pod in found]
            return found

        self._hold(wait_for(f"{backend} has {pods} pods", look, SECONDS), None)

    def hold(self, backend: str) -> None:
        """Make all pods of a backend unready."""
        self._hold(self.pods(backend), "true")

    def _hold(self, pods: Iterable[JSONObject], value: str | None) -> None:
        for pod in pods:
            path = core_path("pods", BACKENDS, pod["metadata"]["name"])
            self.api.patch(path, {"metadata": {"annotations": {HOLD_ANNOTATION: value}}})
            if not self.stack.cluster.simulated:
                gate = {"type": HOLD_GATE, "status": "False" if value else "True"}
                self.api.merge_lists(f"{path}/status", {"status": {"conditions": [gate]}})

    def _wait_replicas(self, backend: str, replicas: int) -> None:
        path = deployment_path(BACKENDS, backend)

        def look() -> bool:
            found = self.api.find(path)
            if found is None:
                assert replicas == 0, "there is no Deployment"
                return True
            status = found["status"]
            assert found["spec"]["replicas"] == replicas, found["spec"]["replicas"]
            assert status.get("observedGeneration") == found["metadata"]["generation"], status
            assert status.get("replicas", 0) == status.get("readyReplicas", 0) == replicas, status
            assert len(self.pods(backend)) == replicas, "pods"
            return True

        wait_for(f"Deployment {backend} has {replicas} replicas", look, SECONDS)


def condition_of(found: JSONObject, type_: str) -> JSONObject:
    """A condition of an object; empty when it has none of this type."""
    conditions = (found.get("status") or {}).get("conditions") or ()
    return next((condition for condition in conditions if condition["type"] == type_), {})
