"""What can be said of the manifests without a cluster."""

import re
from pathlib import Path
from typing import Any

import pytest
from yamllint import linter
from yamllint.config import YamlLintConfig

from farebox.settings import CommonSettings, GatewaySettings, MeterSettings, OperatorSettings
from tests.manifests.trees import (
    BASE,
    KUSTOMIZATIONS,
    MANIFESTS,
    POSTGRESQL,
    ROOT,
    SAMPLES,
    VLLM,
    Workload,
    documents,
    kinds,
    objects,
    references,
    workloads,
)

LINT = YamlLintConfig(file=str(ROOT / ".yamllint"))
YAML_FILES = sorted(MANIFESTS.rglob("*.yaml"))
OURS = [*workloads(BASE), *workloads(SAMPLES)]
ALL = [*OURS, *workloads(VLLM)]
SETTINGS: dict[str, type[CommonSettings]] = {
    "operator": OperatorSettings,
    "meter": MeterSettings,
    "gateway": GatewaySettings,
}


def by_name(value: Any) -> str:
    return value.name if isinstance(value, Workload) else str(value).removeprefix(f"{ROOT}/")


def containers(workload: Workload) -> list[dict[str, Any]]:
    return [*workload.pod["containers"], *workload.pod.get("initContainers", [])]


def lasting(workload: Workload) -> list[dict[str, Any]]:
    """Containers that run as long as the pod: not those that end before it starts."""
    sidecars = [item for item in workload.pod.get("initContainers", []) if "restartPolicy" in item]
    return [*workload.pod["containers"], *sidecars]


def process(name: str) -> tuple[Workload, dict[str, Any]]:
    """The workload and the container of one of Farebox's own processes."""
    (workload,) = (item for item in workloads(BASE) if item.name == f"farebox-{name}")
    return workload, workload.pod["containers"][0]


@pytest.mark.parametrize("path", YAML_FILES, ids=by_name)
def test_the_yaml_is_clean(path: Path) -> None:
    assert [str(problem) for problem in linter.run(path.read_text(), LINT, str(path))] == []


@pytest.mark.parametrize("directory", KUSTOMIZATIONS, ids=by_name)
def test_everything_a_kustomization_names_exists_and_every_file_is_named(directory: Path) -> None:
    named = references(directory)
    assert [path for path in named if not path.exists()] == []
    beside = {path for path in directory.glob("*.yaml") if path.name != "kustomization.yaml"}
    assert {path for path in named if path.is_file()} == beside


@pytest.mark.parametrize("directory", KUSTOMIZATIONS, ids=by_name)
def test_no_object_is_declared_twice(directory: Path) -> None:
    keys = [
        (item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"])
        for item in objects(directory)
    ]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("workload", ALL, ids=by_name)
def test_images_have_a_fixed_tag_and_no_digest(workload: Workload) -> None:
    for container in containers(workload):
        assert re.fullmatch(r"[a-z0-9./-]+:[a-zA-Z0-9._-]+", container["image"]), container["image"]
        assert not container["image"].endswith(":latest")
        assert container["imagePullPolicy"] == "IfNotPresent"


@pytest.mark.parametrize("workload", OURS, ids=by_name)
def test_our_own_image_runs_hardened(workload: Workload) -> None:
    pod = workload.pod["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert (pod["runAsUser"], pod["runAsGroup"]) == (65532, 65532), "as in the Dockerfile"
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(workload):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]


@pytest.mark.parametrize("workload", ALL, ids=by_name)
def test_every_container_has_probes_resources_and_no_privileges(workload: Workload) -> None:
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        assert not workload.pod.get(key)
    assert not any("hostPath" in volume for volume in workload.pod.get("volumes", []))
    for container in lasting(workload):
        ports = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] in ports
    mounted: set[str] = set()
    for container in containers(workload):
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        mounted |= {mount["name"] for mount in container["volumeMounts"]}
    claims = {"ledger"} if workload.name == "farebox-meter" else set()
    assert mounted == {volume["name"] for volume in workload.pod["volumes"]} | claims


LEFT_BY_KUBERNETES = 1050
"""Thousandths of a CPU that a kind node with 2 CPUs has left: etcd asks for 100, the API server 250, the
controller manager 200, the scheduler 100, two CoreDNS 200, kindnet 100 (manifests of kubeadm and kind)."""


def requested(workload: Workload) -> int:
    """Thousandths of a CPU that one pod asks for; what ends before the others start asks for less."""
    asked = [container["resources"]["requests"]["cpu"] for container in lasting(workload)]
    return sum(int(cpu.removesuffix("m")) for cpu in asked)


def test_farebox_and_its_samples_fit_on_a_small_node_even_while_a_rollout_goes_on() -> None:
    replicas = {
        item["metadata"]["name"]: item["spec"]["replicas"]
        for item in [*kinds(BASE, "Deployment"), *kinds(BASE, "StatefulSet")]
    }
    own = {workload.name: requested(workload) for workload in workloads(BASE)}
    at_rest = sum(replicas[name] * cpu for name, cpu in own.items())
    models = [requested(workload) for workload in workloads(SAMPLES)]
    # Rollouts add a pod (maxSurge) of the operator and of the gateway; one of the samples has two replicas.
    surge = own["farebox-operator"] + own["farebox-gateway"]
    assert 0 < at_rest + surge + sum(models) + max(models) <= LEFT_BY_KUBERNETES


@pytest.mark.parametrize("workload", [*workloads(SAMPLES), *workloads(VLLM)], ids=by_name)
def test_backends_get_no_token_for_the_api_server(workload: Workload) -> None:
    assert workload.pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", list(SETTINGS))
def test_environment_variables_are_settings_and_ports_are_theirs(name: str) -> None:
    _, container = process(name)
    known = {f"FAREBOX_{field}".upper() for field in SETTINGS[name].model_fields}
    assert {variable["name"] for variable in container["env"]} <= known
    settings = SETTINGS[name]()
    assert container["args"] == [name]
    port = "health_port" if name == "gateway" else "listen_port"
    assert [port["containerPort"] for port in container["ports"]] == [getattr(settings, port)]


@pytest.mark.parametrize("name", ["operator", "gateway"])
def test_it_and_the_meter_agree_on_address_token_and_audience(name: str) -> None:
    workload, caller = process(name)
    _, meter = process("meter")
    values = {item["name"]: item.get("value") for item in [*caller["env"], *meter["env"]]}
    (service,) = (item for item in kinds(BASE, "Service") if item["metadata"]["name"] == "farebox-meter")
    (port,) = service["spec"]["ports"]
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    assert values["FAREBOX_METER_URL"] == f"http://{host}:{port['port']}"
    (token,) = (
        source["serviceAccountToken"]
        for volume in workload.pod["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
    )
    (mount,) = (item for item in caller["volumeMounts"] if item["name"] == "meter-token")
    assert token["audience"] == values["FAREBOX_TOKEN_AUDIENCE"]
    assert values["FAREBOX_METER_TOKEN_FILE"] == f"{mount['mountPath']}/{token['path']}"


def test_the_ledger_is_on_its_volume_and_has_one_writer() -> None:
    _, meter = process("meter")
    (claim,) = (item["mountPath"] for item in meter["volumeMounts"] if item["name"] == "ledger")
    url = next(item["value"] for item in meter["env"] if item["name"] == "FAREBOX_LEDGER_URL")
    assert url == f"sqlite:///{claim}/ledger.db"
    (stateful,) = kinds(BASE, "StatefulSet")
    assert stateful["spec"]["replicas"] == 1


def test_the_meters_on_postgresql_are_the_base_s_but_for_their_ledger() -> None:
    (deployment,) = kinds(POSTGRESQL, "Deployment")
    (stateful,) = kinds(BASE, "StatefulSet")
    assert deployment["spec"]["selector"] == stateful["spec"]["selector"]
    labels = [item["spec"]["template"]["metadata"]["labels"] for item in (deployment, stateful)]
    assert labels[0] == labels[1]
    pods = [item["spec"]["template"]["spec"] for item in (deployment, stateful)]
    pods[0].pop("topologySpreadConstraints")
    url = pods[0]["containers"][0]["env"].pop(0)
    assert url["valueFrom"]["secretKeyRef"] == {"name": "farebox-ledger", "key": "url"}
    assert pods[1]["containers"][0]["env"].pop(0)["name"] == url["name"] == "FAREBOX_LEDGER_URL"
    pods[1]["containers"][0]["volumeMounts"].remove({"name": "ledger", "mountPath": "/var/lib/farebox"})
    for name in ("fsGroup", "fsGroupChangePolicy"):
        pods[1]["securityContext"].pop(name)
    assert pods[0] == pods[1]


def test_selectors_and_budgets_select_the_pods() -> None:
    templates = {
        item["metadata"]["name"]: item["spec"]["template"]["metadata"]["labels"]
        for item in [*kinds(BASE, "Deployment"), *kinds(BASE, "StatefulSet")]
    }
    for item in [
        *kinds(BASE, "Deployment"),
        *kinds(BASE, "StatefulSet"),
        *kinds(BASE, "PodDisruptionBudget"),
    ]:
        wanted = item["spec"]["selector"]["matchLabels"]
        matching = {name for name, labels in templates.items() if wanted.items() <= labels.items()}
        assert matching == {item["metadata"]["name"]}


def test_backends_are_closed_but_to_the_gateway() -> None:
    (policy,) = (
        item for item in kinds(BASE, "NetworkPolicy") if item["metadata"]["namespace"] == "farebox-models"
    )
    assert policy["spec"]["podSelector"] == {}
    ((peer,),) = (rule["from"] for rule in policy["spec"]["ingress"])
    # Both in one peer: pods with this label in this namespace, not either.
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "farebox-system"}
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"


def test_nobody_is_let_in_by_a_label_that_a_tenant_can_set() -> None:
    for policy in kinds(BASE, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            if policy["metadata"]["name"] == "farebox-gateway" and "from" not in rule:
                # The door itself, where each call needs a key; and no other port of its pods.
                assert rule["ports"] == [{"protocol": "TCP", "port": GatewaySettings().listen_port}]
                continue
            assert rule["from"], "a rule without peers would let everybody in"
            for peer in rule["from"]:
                assert "ipBlock" not in peer
                if "namespaceSelector" in peer:
                    assert peer["namespaceSelector"].get("matchLabels"), (
                        "an empty selector is every namespace"
                    )


def test_no_role_has_wildcards_or_a_way_to_more_rights() -> None:
    for role in [*kinds(BASE, "ClusterRole"), *kinds(BASE, "Role")]:
        for rule in role["rules"]:
            words = {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            if rule["resources"] == ["secrets"]:
                # Two rights on Secrets: to make keys and see none, and to read providers' tokens by name.
                assert (role["kind"], role["metadata"]["name"], rule["verbs"]) in (
                    ("ClusterRole", "farebox-operator", ["create"]),
                    ("Role", "farebox-gateway", ["get"]),
                )
                continue
            assert not words & {"*", "bind", "escalate", "impersonate", "secrets", "pods", "pods/exec"}, role


def test_the_image_is_built_as_the_manifests_run_it() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert "USER 65532:65532" in lines
    assert 'ENTRYPOINT ["farebox"]' in lines
    # Found by running it: Kopf calls getpass.getuser(), and this uid has no name.
    assert any(line.startswith("ENV ") and "LOGNAME=" in line for line in lines)
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert set(bases) == {"python:${PYTHON_VERSION}-slim"}
    copied = {
        name
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for name in line.split()[1:-1]
    }
    assert [name for name in copied if not (ROOT / name).exists()] == []
    kept = {
        line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    assert kept == copied


def test_samples_name_only_what_is_there() -> None:
    models = {item["metadata"]["name"] for item in kinds(SAMPLES, "Model")}
    accounts = {
        (item["metadata"]["namespace"], item["metadata"]["name"]) for item in kinds(SAMPLES, "BillingAccount")
    }
    namespaces = {item["metadata"]["name"] for item in kinds(SAMPLES, "Namespace")}
    for service in kinds(SAMPLES, "InferenceService"):
        account = service["spec"]["billingAccountRef"]
        assert service["spec"]["modelRef"]["name"] in models
        assert (account.get("namespace", service["metadata"]["namespace"]), account["name"]) in accounts
    services = {
        (item["metadata"]["namespace"], item["metadata"]["name"])
        for item in kinds(SAMPLES, "InferenceService")
    }
    for key in kinds(SAMPLES, "APIKey"):
        for name in key["spec"]["services"]["names"]:
            assert (key["metadata"]["namespace"], name) in services
    for top_up in kinds(SAMPLES, "TopUp"):
        assert (top_up["metadata"]["namespace"], top_up["spec"]["billingAccountRef"]["name"]) in accounts
    named = {item["metadata"].get("namespace") for item in objects(SAMPLES)}
    assert named - {None} == namespaces


@pytest.mark.parametrize("workload", list(workloads(SAMPLES)), ids=by_name)
def test_a_simulated_model_answers_to_its_name_on_its_port(workload: Workload) -> None:
    (model,) = (item for item in kinds(SAMPLES, "Model") if item["metadata"]["name"] == workload.name)
    (container,) = workload.pod["containers"]
    port = model["spec"]["serving"]["deployment"]["port"]
    assert container["args"][:3] == ["simulator", f"--port={port}", f"--model={model['spec']['servedName']}"]
    assert container["ports"] == [{"name": "http", "containerPort": port}]


def test_the_crds_of_the_base_are_those_of_the_repository() -> None:
    (crds,) = (path for path in references(BASE) if path.is_dir())
    assert crds.resolve() == ROOT / "crds"
    assert {item["kind"] for path in references(crds) for item in documents(path)} == {
        "CustomResourceDefinition"
    }
