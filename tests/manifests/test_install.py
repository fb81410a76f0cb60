"""The manifests on a real API server: accepted without a warning, and their pods too."""

import json
from typing import Any

import pytest

from tests.manifests.trees import BASE, EXTERNAL, SAMPLES, VLLM, kinds, workloads
from tests.tools.plane import Cluster, KubectlError

pytestmark = pytest.mark.plane


def get(plane: Cluster, *args: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(plane.kubectl("get", *args, "--output=json"))
    return found


def deployment_of(name: str, pod: dict[str, Any]) -> str:
    """A Deployment with a Model's pod template, as the operator would make one."""
    labels = {"app": name.replace(".", "-")}
    return json.dumps(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": labels["app"], "namespace": "farebox-models"},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        }
    )


def test_all_pods_pass_pod_security_and_come_up(installed: Cluster) -> None:
    for workload in (
        "deployment/farebox-operator",
        "statefulset/farebox-meter",
        "deployment/farebox-gateway",
    ):
        installed.kubectl("rollout", "status", "-n", "farebox-system", workload, "--timeout=60s")
    claim = get(installed, "pvc", "-n", "farebox-system", "ledger-farebox-meter-0")
    assert claim["status"]["phase"] == "Bound"
    budgets = get(installed, "pdb", "-n", "farebox-system")["items"]
    assert {item["metadata"]["name"]: item["spec"].get("minAvailable") for item in budgets} == {
        "farebox-operator": 1,
        "farebox-meter": None,
        "farebox-gateway": None,
    }


def test_applying_the_base_again_changes_nothing(installed: Cluster) -> None:
    out = installed.kubectl("diff", "--server-side", "-k", str(BASE))
    assert out == ""


@pytest.mark.parametrize("name", ["meter", "gateway"])
def test_a_drain_of_nodes_may_evict_it(installed: Cluster, name: str) -> None:
    """A budget that never allows it would block every upgrade of a node."""
    installed.kubectl(
        "wait",
        "-n",
        "farebox-system",
        f"pdb/farebox-{name}",
        "--for=jsonpath={.status.disruptionsAllowed}=1",
        "--timeout=60s",
    )


def test_a_pod_that_is_not_restricted_is_refused_beside_the_operator(installed: Cluster) -> None:
    with pytest.raises(KubectlError, match="violates PodSecurity"):
        installed.kubectl("run", "root", "-n", "farebox-system", "--image=farebox:dev", "--dry-run=server")


def test_the_samples_are_accepted(installed: Cluster) -> None:
    installed.kubectl("apply", "--server-side", "--warnings-as-errors", "-k", str(SAMPLES))
    for kind in ("Model", "BillingAccount", "TopUp", "InferenceService"):
        declared = {item["metadata"]["name"] for item in kinds(SAMPLES, kind)}
        found = {
            item["metadata"]["name"] for item in get(installed, kind.lower(), "--all-namespaces")["items"]
        }
        assert declared
        assert declared <= found


@pytest.mark.parametrize("directory", [VLLM, EXTERNAL], ids=["vllm", "external"])
def test_the_other_samples_are_accepted(installed: Cluster, directory: Any) -> None:
    installed.kubectl("apply", "--server-side", "--dry-run=server", "-k", str(directory))


@pytest.mark.parametrize("name", [workload.name for workload in workloads(SAMPLES)])
def test_simulated_models_are_restricted_pods(installed: Cluster, name: str) -> None:
    (pod,) = (workload.pod for workload in workloads(SAMPLES) if workload.name == name)
    flags = ("--dry-run=server", "--warnings-as-errors")
    installed.kubectl("create", "-f", "-", *flags, input=deployment_of(name, pod))


def test_a_vllm_pod_is_allowed_with_a_warning(installed: Cluster) -> None:
    (workload,) = workloads(VLLM)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "vllm", "namespace": "farebox-models"}}
    installed.kubectl("create", "-f", "-", "--dry-run=server", input=json.dumps(pod | {"spec": workload.pod}))
    with pytest.raises(KubectlError, match="runAsNonRoot"):
        installed.kubectl(
            "create",
            "-f",
            "-",
            "--dry-run=server",
            "--warnings-as-errors",
            input=deployment_of(workload.name, workload.pod),
        )


def test_a_privileged_pod_is_refused_among_the_models(installed: Cluster) -> None:
    (workload,) = workloads(VLLM)
    (container,) = workload.pod["containers"]
    privileged = container | {"securityContext": {"privileged": True}}
    spec = workload.pod | {"containers": [privileged]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "vllm", "namespace": "farebox-models"}}
    with pytest.raises(KubectlError, match="violates PodSecurity"):
        installed.kubectl("create", "-f", "-", "--dry-run=server", input=json.dumps(pod | {"spec": spec}))
