"""The state of a model's shared backend. It is at zero when no service needs it. Pure."""

from dataclasses import dataclass

from farebox.api import ConditionType
from farebox.domain.conditions import ConditionVerdict, false, kstatus, true
from farebox.domain.facts import EXTERNAL, MISSING, UNKNOWN, BackendFacts, External, Missing, Unknown
from farebox.domain.lifecycle import desired_replicas


@dataclass(frozen=True, slots=True)
class SharedBackendFacts:
    """A model and its shared backend.

    `wanted` says whether any service needs the shared backend. `refusal` is the API server's message when it
    rejects the Deployment, `price_refusal` the ledger's when it rejects the prices; both are "" otherwise.
    """

    backend: BackendFacts | Missing | External
    wanted: bool | Unknown
    replicas: int
    refusal: str = ""
    price_refusal: str = ""


@dataclass(frozen=True, slots=True)
class ModelVerdict:
    """The decision on a model. `replicas` is None when the Deployment is left unchanged."""

    replicas: int | None
    conditions: tuple[ConditionVerdict, ...]


def decide_model(facts: SharedBackendFacts) -> ModelVerdict:
    """The replicas of the shared backend, and the conditions of the model."""
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
        message = f"The API server rejects the Deployment of spec.serving.deployment: {facts.refusal}"
        ready = false(ConditionType.READY, "BackendRejected", message)
        return kstatus(ready, stalled="BackendRejected")
    backend = facts.backend
    if backend is EXTERNAL:
        return kstatus(true(ConditionType.READY, "External", "An external provider serves the model"))
    if backend is MISSING:
        if replicas:
            ready = false(ConditionType.READY, "Progressing", "The shared backend is being created")
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
    """Ready=True with the reason why the shared backend has no replicas."""
    if facts.wanted is True:
        message = "Services need the shared backend, but spec.serving.deployment.replicas is 0. Scale it up"
        return true(ConditionType.READY, "ScaledToZero", message)
    if facts.wanted is UNKNOWN:
        message = "Waiting for the services that use this model to be evaluated"
        return true(ConditionType.READY, "Idle", message)
    return true(ConditionType.READY, "Idle", "No service needs the shared backend")
