"""The Lua that Argo CD runs, run by a real Lua: kstatus conditions in, Argo CD's words out."""

from typing import Any

import lupa
import pytest

from farebox.api.kinds import KINDS
from tests.manifests.trees import ARGOCD, documents

PREFIX = "resource.customizations.health.farebox.dev_"
(CONFIG_MAP,) = documents(ARGOCD / "argocd-cm.yaml")


def condition(kind: str, status: str, reason: str = "Reason", message: str = "words") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def health(kind: str, conditions: list[dict[str, str]] | None, **more: Any) -> tuple[str, str]:
    """What Argo CD shows of an object with these conditions."""
    status: dict[str, Any] = {"observedGeneration": more.get("observed", 2)}
    if conditions is not None:
        status["conditions"] = conditions
    obj: dict[str, Any] = {"metadata": {"name": "x", "generation": 2, **more.get("metadata", {})}}
    if not more.get("unseen"):
        obj["status"] = status
    lua = lupa.LuaRuntime(unpack_returned_tuples=True, register_eval=False)
    lua.globals().obj = lua.table_from(obj, recursive=True)
    answer = lua.execute(CONFIG_MAP["data"][PREFIX + kind])
    return answer["status"], answer["message"]


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_there_is_a_check_for_every_kind_and_nothing_else() -> None:
    assert set(CONFIG_MAP["data"]) == {PREFIX + kind for kind in KINDS}


def test_ready_is_healthy(kind: str) -> None:
    conditions = [
        condition("Reconciling", "False"),
        condition("Stalled", "False"),
        condition("Ready", "True"),
    ]
    assert health(kind, conditions) == ("Healthy", "words")


def test_stalled_is_degraded_and_says_why(kind: str) -> None:
    """An overdue service: Ready False and Stalled True."""
    conditions = [condition("Ready", "False", "Overdue"), condition("Stalled", "True", "Overdue", "pay 5.00")]
    assert health(kind, conditions) == ("Degraded", "Overdue: pay 5.00")


def test_reconciling_is_progressing_even_beside_a_ready_that_is_true(kind: str) -> None:
    conditions = [condition("Ready", "True"), condition("Reconciling", "True", "Resuming", "0 of 2 ready")]
    assert health(kind, conditions) == ("Progressing", "Resuming: 0 of 2 ready")


def test_stalled_wins_over_reconciling(kind: str) -> None:
    conditions = [condition("Reconciling", "True"), condition("Stalled", "True")]
    assert health(kind, conditions)[0] == "Degraded"


@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_not_ready_without_more_is_progressing(kind: str, status: str) -> None:
    assert health(kind, [condition("Ready", status, "BalanceUnknown")]) == (
        "Progressing",
        "BalanceUnknown: words",
    )


def test_what_farebox_has_not_seen_is_progressing(kind: str) -> None:
    assert health(kind, None, unseen=True)[0] == "Progressing"
    assert health(kind, None)[0] == "Progressing"
    assert health(kind, [])[0] == "Progressing"
    assert health(kind, [condition("Ready", "True")], observed=1)[0] == "Progressing"


def test_being_deleted_is_progressing(kind: str) -> None:
    metadata = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    assert health(kind, [condition("Ready", "True")], metadata=metadata)[0] == "Progressing"
