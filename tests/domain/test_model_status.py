"""The shared backend of a model: at zero exactly when no service needs it; and its conditions."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.api import ConditionStatus, ConditionType
from farebox.domain.facts import EXTERNAL, MISSING, UNKNOWN, BackendFacts
from farebox.domain.model_status import ModelVerdict, SharedBackendFacts, decide_model
from tests.domain.build import EMPTY, READY, STARTING
from tests.domain.strategies import THOROUGH, backends

WANTED = SharedBackendFacts(backend=READY, wanted=True, replicas=2)


def said(verdict: ModelVerdict) -> dict[str, str]:
    return {c.type.value: f"{c.status.value} {c.reason}" for c in verdict.conditions}


@pytest.mark.parametrize(
    ("backend", "wanted", "replicas"),
    [
        (MISSING, True, 2),
        (EMPTY, True, 2),
        (READY, True, 2),
        (READY, False, 0),
        (EMPTY, False, 0),
        (MISSING, False, None),
        (READY, UNKNOWN, None),
        (MISSING, UNKNOWN, None),
        (EXTERNAL, True, None),
        (EXTERNAL, False, None),
    ],
)
def test_replicas_follow_demand(backend: Any, wanted: Any, replicas: int | None) -> None:
    assert decide_model(SharedBackendFacts(backend, wanted, replicas=2)).replicas == replicas


@pytest.mark.parametrize("backend", [READY, EMPTY, MISSING])
def test_a_model_scaled_to_zero_stays_there(backend: Any) -> None:
    """The Model has its own scale subresource; no backend is created only to be empty."""
    verdict = decide_model(SharedBackendFacts(backend, wanted=True, replicas=0))
    assert verdict.replicas == (None if backend is MISSING else 0)
    if backend is not READY:
        assert said(verdict)["Ready"] == "True ScaledToZero"


@pytest.mark.parametrize(
    ("backend", "wanted", "ready"),
    [
        (READY, True, "True Ready"),
        (STARTING, True, "False Progressing"),
        (MISSING, True, "False Progressing"),
        (replace(READY, desired=3), True, "False Progressing"),
        (replace(READY, current=False), True, "False Progressing"),
        (READY, False, "False Progressing"),
        (EMPTY, False, "True Idle"),
        (MISSING, False, "True Idle"),
        (READY, UNKNOWN, "True Ready"),
        (EMPTY, UNKNOWN, "True Idle"),
        (EXTERNAL, True, "True External"),
        (replace(STARTING, failure="timed out"), True, "False BackendFailed"),
        (replace(STARTING, failure="timed out", current=False), True, "False Progressing"),
    ],
)
def test_ready_has_the_reason_for_the_backends_state(backend: Any, wanted: Any, ready: str) -> None:
    verdict = decide_model(SharedBackendFacts(backend, wanted, replicas=2))
    assert said(verdict)["Ready"] == ready


def test_rejections_are_stalled_with_their_message() -> None:
    verdict = decide_model(replace(WANTED, refusal="spec.template.x: no"))
    assert said(verdict)["Stalled"] == "True BackendRejected"
    assert "spec.template.x: no" in verdict.conditions[0].message
    priced = decide_model(replace(WANTED, refusal="x", price_refusal="the prices cannot be used"))
    assert said(priced)["Stalled"] == "True PriceRefused"
    assert priced.conditions[0].message == "the prices cannot be used"


facts = st.builds(
    SharedBackendFacts,
    backend=st.one_of(backends(), st.sampled_from((MISSING, EXTERNAL))),
    wanted=st.sampled_from((True, False, UNKNOWN)),
    replicas=st.integers(0, 3),
    refusal=st.sampled_from(("", "refused")),
    price_refusal=st.sampled_from(("", "refused")),
)


@THOROUGH
@given(facts)
def test_unknown_demand_scales_nothing_and_known_demand_converges(facts: SharedBackendFacts) -> None:
    verdict = decide_model(facts)
    if facts.wanted is UNKNOWN or facts.backend is EXTERNAL:
        assert verdict.replicas is None
        return
    if verdict.replicas is None:
        assert facts.backend is MISSING
        return
    count = verdict.replicas
    scaled = BackendFacts(desired=count, replicas=count, ready=count, updated=count, current=True)
    settled = decide_model(replace(facts, backend=scaled, refusal="", price_refusal=""))
    assert settled.replicas == count
    assert settled.conditions[0].status is ConditionStatus.TRUE


@THOROUGH
@given(facts)
def test_exactly_one_of_ready_reconciling_and_stalled(facts: SharedBackendFacts) -> None:
    verdict = decide_model(facts)
    assert [c.type for c in verdict.conditions] == [
        ConditionType.READY,
        ConditionType.RECONCILING,
        ConditionType.STALLED,
    ]
    assert [c.status for c in verdict.conditions].count(ConditionStatus.TRUE) == 1
