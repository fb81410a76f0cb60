"""The state of a model's shared backend: at zero exactly when no service on the model is wanted. Pure."""

from dataclasses import dataclass

from farebox.api import ConditionType
from farebox.domain.conditions import ConditionVerdict, false, kstatus, true
from farebox.domain.facts import EXTERNAL, MISSING, UNKNOWN, BackendFacts, External, Missing, Unknown
from farebox.domain.lifecycle import desired_replicas


@dataclass(frozen=True, slots=True)
class SharedBackendFacts:
    """A model's shared backend. `wanted`: whether any shared service on the model wants to run."""

    backend: BackendFacts | Missing | External
    wanted: bool | Unknown
    replicas: int
    refusal: str = ""
    price_refusal: str = ""


@dataclass(frozen=True, slots=True)
class ModelVerdict:
    """`replicas` is None where the backend is to be left as it is."""

    replicas: int | None
    conditions: tuple[ConditionVerdict, ...]


def decide_model(facts: SharedBackendFacts) -> ModelVerdict:
    """What the shared backend should have, and what to report of the model."""
    replicas = None
    if facts.wanted is not UNKNOWN and facts.backend is not EXTERNAL:
        replicas = desired_replicas(facts.wanted, facts.replicas)
        if facts.backend is MISSING and replicas == 0:
            replicas = None
    return ModelVerdict(replicas, _conditions(facts, replicas))


def _conditions(facts: SharedBackendFacts, replicas: int | None) -> tuple[ConditionVerdict, ...]:
    if facts.price_refusal:
        ready = false(ConditionType.READY, "PriceRefused", facts.price_refusal)
        return kstatus(ready, stalled="PriceRefused")
    if facts.refusal:
        message = f"the API server refuses the Deployment of spec.serving.deployment: {facts.refusal}"
        ready = false(ConditionType.READY, "BackendRejected", message)
        return kstatus(ready, stalled="BackendRejected")
    backend = facts.backend
    if backend is EXTERNAL:
        return kstatus(true(ConditionType.READY, "External", "served by an external provider"))
    if backend is MISSING:
        if replicas:
            ready = false(ConditionType.READY, "Progressing", "the shared backend is being created")
            return kstatus(ready, reconciling="Progressing")
        return kstatus(_at_zero(facts))
    expected = backend.desired if replicas is None else replicas
    if backend.rolled_out and backend.desired == expected:
        if expected == 0:
            return kstatus(_at_zero(facts))
        return kstatus(
            true(ConditionType.READY, "Ready", f"{backend.ready} of {expected} replicas are ready")
        )
    if backend.failure and backend.current:
        ready = false(ConditionType.READY, "BackendFailed", backend.failure)
        return kstatus(ready, stalled="BackendFailed")
    message = f"{backend.ready if backend.current else 0} of {expected} replicas are ready"
    return kstatus(false(ConditionType.READY, "Progressing", message), reconciling="Progressing")


def _at_zero(facts: SharedBackendFacts) -> ConditionVerdict:
    """Why the shared backend has no replicas, which is as it should be."""
    if facts.wanted is True:
        message = "services want the shared backend, but spec.serving.deployment.replicas is 0: scale it up"
        return true(ConditionType.READY, "ScaledToZero", message)
    if facts.wanted is UNKNOWN:
        return true(ConditionType.READY, "Idle", "it is not known yet whether a service wants the backend")
    return true(ConditionType.READY, "Idle", "no service wants the shared backend")
