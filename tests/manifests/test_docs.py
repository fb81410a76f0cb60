"""The YAML in docs/ that people copy: it parses, its kinds are real, and the overlays build."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests.trees import ROOT
from tests.tools.plane import Cluster

PAGES = [ROOT / "docs" / name for name in ("install.md", "gitops.md", "autoscaling.md", "gateway.md")]
NOT_HERE = {"Application", "Certificate", "Kustomization", "ScaledObject"}
"""Kinds of tools that the plane does not have."""


def blocks(page: Path) -> list[dict[str, Any]]:
    """The YAML documents in a page's fenced blocks."""
    found = re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [document for block in found for document in yaml.safe_load_all(block)]


OBJECTS = [(page, block) for page in PAGES for block in blocks(page)]
OVERLAYS = [block for page, block in OBJECTS if block["apiVersion"].startswith("kustomize.config.k8s.io")]
IDS = [f"{page.name}-{block['kind']}" for page, block in OBJECTS]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_and_paths_in_a_page_exist(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    paths = re.findall(r"(?:manifests|operator|docs|tests)/[\w./-]*\w", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(("page", "block"), OBJECTS, ids=IDS)
def test_what_scales_a_service_names_the_service(page: Path, block: dict[str, Any]) -> None:
    """An example that pointed at the Deployment would be undone by the operator (B5)."""
    target = block.get("spec", {}).get("scaleTargetRef") if isinstance(block.get("spec"), dict) else None
    if target is None:
        assert block["kind"] not in ("ScaledObject", "HorizontalPodAutoscaler")
    else:
        assert (target["apiVersion"], target["kind"]) == ("farebox.dev/v1alpha1", "InferenceService")


@pytest.mark.plane
@pytest.mark.parametrize(
    "block", [block for _, block in OBJECTS if block["kind"] not in NOT_HERE], ids=lambda block: block["kind"]
)
def test_the_api_server_takes_an_example(installed: Cluster, block: dict[str, Any]) -> None:
    namespace = block["metadata"]["namespace"]
    installed.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    installed.kubectl("create", "--dry-run=server", "-f", "-", input=yaml.safe_dump(block))


@pytest.mark.plane
@pytest.mark.parametrize("overlay", OVERLAYS, ids=["image", "setting", "postgresql"])
def test_an_overlay_builds(plane: Cluster, tmp_path: Path, overlay: dict[str, Any]) -> None:
    (tmp_path / "farebox-repository").symlink_to(ROOT)
    (tmp_path / "farebox").mkdir()
    (tmp_path / "farebox" / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    built = list(yaml.safe_load_all(plane.kubectl("kustomize", str(tmp_path / "farebox"))))
    deployments = {item["metadata"]["name"]: item for item in built if item["kind"] == "Deployment"}
    operator = deployments["farebox-operator"]
    (container,) = operator["spec"]["template"]["spec"]["containers"]
    if "images" in overlay:
        assert container["image"] == "registry.example.com/farebox:0.1.0"
    elif "components" in overlay:
        meter = deployments["farebox-meter"]
        assert meter["spec"]["replicas"] > 1
        assert meter["metadata"]["labels"].items() >= {"app.kubernetes.io/name": "farebox"}.items()
        assert not any(item["kind"] == "StatefulSet" for item in built)
        (budget,) = (
            item
            for item in built
            if item["kind"] == "PodDisruptionBudget" and item["metadata"]["name"] == "farebox-meter"
        )
        assert budget["spec"]["selector"] == meter["spec"]["selector"]
    else:
        assert {"name": "FAREBOX_LOG_LEVEL", "value": "DEBUG"} in container["env"]
