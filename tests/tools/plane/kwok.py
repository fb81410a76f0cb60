"""kwok's configuration: its own fast stages, and a way for tests to keep pods from being ready.

A pod with the annotation `farebox.dev/test-hold` (any value) stays Pending until the annotation is taken
away; a running pod that gets it turns unready, and ready again without it. Put it on a pod template to hold
all pods of a Deployment from the start.
"""

from pathlib import Path
from typing import Any

import yaml

HOLD_ANNOTATION = "farebox.dev/test-hold"
_HOLD_KEY = f'.metadata.annotations["{HOLD_ANNOTATION}"]'
_READY_KEY = '.status.conditions.[] | select( .type == "Ready" ) | .status'
# Stages that run at the same time; the default of 4 makes 2,000 pods wait for each other.
PARALLEL_STAGES = 16


def write_configuration(stock_stages: Path, target: Path) -> None:
    """Write the file for `kwok --config`."""
    documents: list[dict[str, Any]] = [
        {
            "apiVersion": "config.kwok.x-k8s.io/v1alpha1",
            "kind": "KwokConfiguration",
            "metadata": {"name": "kwok"},
            "options": {
                "podPlayStageParallelism": PARALLEL_STAGES,
                "nodePlayStageParallelism": PARALLEL_STAGES,
            },
        }
    ]
    for stage in yaml.safe_load_all(stock_stages.read_text()):
        if stage["metadata"]["name"] == "pod-ready":
            stage["spec"]["selector"]["matchExpressions"].append(_expression(_HOLD_KEY, "DoesNotExist"))
        documents.append(stage)
    documents.append(_readiness_stage("pod-held", "Exists", "True", "False"))
    documents.append(_readiness_stage("pod-released", "DoesNotExist", "False", "True"))
    target.write_text(yaml.safe_dump_all(documents, sort_keys=False))


def _readiness_stage(name: str, hold: str, before: str, after: str) -> dict[str, object]:
    """Running pods whose annotation `hold`s (an operator) go from one readiness to the other."""
    conditions = "".join(
        f"- type: {condition}\n  status: {after!r}\n  lastTransitionTime: {{{{ Now | Quote }}}}\n"
        for condition in ("Ready", "ContainersReady")
    )
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": "Pod"},
            "selector": {
                "matchExpressions": [
                    _expression(".metadata.deletionTimestamp", "DoesNotExist"),
                    _expression(".status.phase", "In", "Running"),
                    _expression(_READY_KEY, "In", before),
                    _expression(_HOLD_KEY, hold),
                ]
            },
            "next": {"statusTemplate": f"conditions:\n{conditions}"},
        },
    }


def _expression(key: str, operator: str, *values: str) -> dict[str, object]:
    expression: dict[str, object] = {"key": key, "operator": operator}
    return expression | {"values": list(values)} if values else expression
