"""The store of one kind: what it keeps of objects that it cannot read."""

from typing import Any

from structlog.testing import capture_logs

from farebox.domain.keys import ObjectKey
from farebox.kube.store import Store

KEY = ObjectKey("team-a", "chat")


def service(version: int, value: str) -> dict[str, Any]:
    metadata = {"namespace": KEY.namespace, "name": KEY.name, "resourceVersion": str(version)}
    return {"metadata": metadata, "value": value}


def number(raw: dict[str, Any]) -> int:
    return int(raw["value"])


def test_an_unreadable_object_is_logged_once_for_each_version() -> None:
    store = Store("Service", number)
    store.put(service(1, "1"))
    with capture_logs() as logs:
        for version in (2, 2, 3, 2, 3):
            assert store.put(service(version, "nothing")) is None
            store.remove_absent({KEY}, version)
            store.forget_deletions(version)
    assert [entry["event"] for entry in logs] == ["object.unreadable"] * 2
    assert store.get(KEY) == 1
    assert store.put(service(4, "4")) is not None
    assert store.get(KEY) == 4
