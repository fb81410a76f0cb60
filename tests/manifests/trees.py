"""Reads the kustomize trees under manifests/ without kubectl: what each names, and its objects."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "manifests"
BASE = MANIFESTS / "base"
SAMPLES = MANIFESTS / "samples"
VLLM = SAMPLES / "vllm"
EXTERNAL = SAMPLES / "external"
ARGOCD = MANIFESTS / "argocd"
COMPONENTS = MANIFESTS / "components"
POSTGRESQL = COMPONENTS / "postgresql"
PROMETHEUS = MANIFESTS / "components" / "prometheus"

KUSTOMIZATIONS = sorted(path.parent for path in MANIFESTS.rglob("kustomization.yaml"))

Object = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """Something with a pod template: where it stands, the template's pod spec, its kind."""

    name: str
    kind: str
    pod: Object


def documents(path: Path) -> list[Object]:
    """The YAML documents of a file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def references(directory: Path) -> list[Path]:
    """What a kustomization names, as paths."""
    (kustomization,) = documents(directory / "kustomization.yaml")
    named = [*kustomization.get("resources", []), *kustomization.get("components", [])]
    named += [patch["path"] for patch in kustomization.get("patches", [])]
    return [directory / name for name in named]


def objects(directory: Path) -> list[Object]:
    """All objects of a kustomization's own files; those of directories that it names are not among them."""
    return [item for path in references(directory) if path.is_file() for item in documents(path)]


def kinds(directory: Path, kind: str) -> list[Object]:
    """The objects of one kind."""
    return [item for item in objects(directory) if item["kind"] == kind]


def workloads(directory: Path) -> Iterator[Workload]:
    """Everything with a pod template, those of Models too."""
    for item in objects(directory):
        name, kind = item["metadata"]["name"], item["kind"]
        if kind in ("Deployment", "StatefulSet"):
            yield Workload(name, kind, item["spec"]["template"]["spec"])
        elif kind == "Model" and "deployment" in item["spec"]["serving"]:
            yield Workload(name, kind, item["spec"]["serving"]["deployment"]["template"]["spec"])
