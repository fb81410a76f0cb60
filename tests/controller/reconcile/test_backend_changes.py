"""Which changes of a backend queue its owner, and which do not."""

import copy
from typing import Any

from farebox.controller.queue import service_key
from farebox.controller.sources.mapping import requests_for
from farebox.controller.state.cache import Cache
from farebox.domain.keys import ObjectKey
from farebox.kube.names import (
    BACKEND_LABEL,
    SERVICE_NAME_LABEL,
    SERVICE_NAMESPACE_LABEL,
    dedicated_backend_name,
)

SERVICE = ObjectKey("team-a", "own")
NAME = dedicated_backend_name(SERVICE)


def deployment(version: int, **status: Any) -> dict[str, Any]:
    labels = {BACKEND_LABEL: NAME}
    return {
        "metadata": {
            "name": NAME,
            "namespace": "farebox-models",
            "uid": "u-1",
            "generation": 1,
            "resourceVersion": str(version),
            "labels": labels,
            "annotations": {SERVICE_NAMESPACE_LABEL: "team-a", SERVICE_NAME_LABEL: "own"},
        },
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "server"}]}},
        },
        "status": {"observedGeneration": 1} | status,
    }


def woken(cache: Cache, raw: dict[str, Any]) -> set[Any]:
    change = cache.backends.put(raw)
    assert change is not None
    return {work.key for work in requests_for(cache, change)}


def test_only_what_matters_of_a_backend_wakes_its_service() -> None:
    cache = Cache()
    key = service_key(SERVICE)
    assert woken(cache, deployment(1)) == {key}
    assert woken(cache, deployment(2)) == set()
    progressing = {"type": "Progressing", "status": "True", "lastUpdateTime": "2026-11-24T16:00:00Z"}
    assert woken(cache, deployment(3, conditions=[progressing])) == set()
    assert woken(cache, deployment(4, readyReplicas=1)) == {key}
    edited = deployment(5, readyReplicas=1)
    edited["spec"]["template"]["spec"]["containers"][0]["image"] = "evil"
    assert woken(cache, edited) == {key}
    bare = copy.deepcopy(edited)
    bare["metadata"] |= {"resourceVersion": "6", "labels": {}}
    assert woken(cache, bare) == {key}
    assert cache.backends.version(ObjectKey("farebox-models", NAME)) == 6


def test_backends_of_one_model_share_their_pod_spec() -> None:
    cache = Cache()
    other = deployment(2)
    other["metadata"]["name"] = "another"
    cache.backends.put(deployment(1))
    cache.backends.put(other)
    one, two = cache.backends.values()
    assert one.template["spec"] is two.template["spec"]
    assert one.template == deployment(1)["spec"]["template"]
