"""The state of a service: `decide_service(facts, now)` is the only source of phases.

Pure: facts and a time go in, a verdict comes out. It never reads a clock, the API server or the ledger.
Replica counts are never saved: a backend has `wanted ? spec.replicas : 0` (product.md, States).
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from farebox.api import BillingMode, ConditionType, Phase, ReservationState, ServiceType, StopReason
from farebox.domain.conditions import ConditionVerdict, false, kstatus, true, unknown
from farebox.domain.facts import EXTERNAL, MISSING, UNKNOWN, BackendFacts, Facts, ModelFacts
from farebox.domain.stop_reasons import Evaluation, evaluate, reservation_state

NO_REPLICA_READY: Final = "NoReplicaReady"
"""Reason of Serving=False: the service is Running, but no replica is ready."""


@dataclass(frozen=True, slots=True)
class ServiceVerdict:
    """The state of a service, and whether its backend should run.

    `phase` is None for a new service with too many unknown facts. `wanted` says whether the backend should
    run. `decided` is False while an unknown fact keeps the service in its previous state. `due` is when the
    service must be reconciled at the latest because time alone changes the verdict; None means never.
    """

    phase: Phase | None
    billing_mode: BillingMode
    stop_reasons: tuple[StopReason, ...]
    wanted: bool
    decided: bool
    enabled_at: datetime | None
    first_running_at: datetime | None
    conditions: tuple[ConditionVerdict, ...]
    due: datetime | None


def decide_service(facts: Facts, now: datetime) -> ServiceVerdict:
    """The verdict on one service at one moment (B1-B5, B8, B9; the state table of product.md).

    Unknown facts never change a phase, and never stop or start a service. An unknown stop reason keeps its
    previous value. A service that did not run before starts only when every reason is known to be False.
    """
    evaluation = evaluate(facts, now)
    previous = facts.previous
    stop_reasons = tuple(
        reason
        for reason in StopReason
        if reason in evaluation.active or (reason in evaluation.unknown and reason in previous.stop_reasons)
    )
    enabled_at = previous.enabled_at
    if enabled_at is None and StopReason.POSTPAID_DISABLED not in stop_reasons:
        enabled_at = now

    if stop_reasons:
        return _stopped(facts, evaluation, stop_reasons, enabled_at, now)
    if evaluation.unknown and not previous.wanted:
        return _undecided(facts, evaluation, enabled_at, now)
    return _wanted(facts, enabled_at, now)


def desired_replicas(wanted: bool, replicas: int) -> int:
    """The replicas of a backend. Nothing is saved on stop (B3, B5)."""
    return replicas if wanted else 0


def _stopped(
    facts: Facts,
    evaluation: Evaluation,
    reasons: tuple[StopReason, ...],
    enabled_at: datetime | None,
    now: datetime,
) -> ServiceVerdict:
    """The verdict when at least one stop reason holds."""
    never_enabled = (
        facts.service.type is ServiceType.DEFAULT
        and enabled_at is None
        and reasons == (StopReason.POSTPAID_DISABLED,)
    )
    phase = Phase.NOT_ENABLED if never_enabled else Phase.STOPPED
    message = "; ".join(
        evaluation.active.get(reason) or f"Still {reason.value}: waiting for {evaluation.unknown[reason]}"
        for reason in reasons
    )
    return ServiceVerdict(
        phase=phase,
        billing_mode=_billing_mode(facts, now),
        stop_reasons=reasons,
        wanted=False,
        decided=True,
        enabled_at=enabled_at,
        first_running_at=facts.previous.first_running_at,
        conditions=(
            *_stopped_conditions(facts, phase, reasons, message),
            false(ConditionType.SERVING, reasons[0].value, message),
        ),
        due=_due(facts, now),
    )


def _stopped_conditions(
    facts: Facts, phase: Phase, reasons: tuple[StopReason, ...], message: str
) -> tuple[ConditionVerdict, ...]:
    """Ready, Reconciling and Stalled of a stopped service.

    A service that its owner disabled matches its spec, so it is Ready. Any other reason is Stalled.
    """
    if StopReason.POSTPAID_DISABLED not in reasons:
        first = reasons[0].value
        return kstatus(false(ConditionType.READY, first, message), stalled=first)
    if ceiling := limit_above_ceiling(facts):
        return kstatus(false(ConditionType.READY, "LimitAboveCeiling", ceiling), stalled="LimitAboveCeiling")
    backend = facts.backend
    if facts.service.dedicated and isinstance(backend, BackendFacts) and backend.replicas > 0:
        stopping = false(ConditionType.READY, "Stopping", f"{backend.replicas} replicas are terminating")
        return kstatus(stopping, reconciling="Stopping")
    reason = "NotEnabled" if phase is Phase.NOT_ENABLED else "Disabled"
    return kstatus(true(ConditionType.READY, reason, message))


def _undecided(
    facts: Facts, evaluation: Evaluation, enabled_at: datetime | None, now: datetime
) -> ServiceVerdict:
    """The verdict when no stop reason holds but some are unknown: the service keeps its state."""
    previous = facts.previous
    missing = ", ".join(dict.fromkeys(evaluation.unknown.values()))
    message = f"Waiting for {missing}. The service keeps its current state"
    return ServiceVerdict(
        phase=previous.phase,
        billing_mode=previous.billing_mode,
        stop_reasons=previous.stop_reasons,
        wanted=False,
        decided=False,
        enabled_at=enabled_at,
        first_running_at=previous.first_running_at,
        conditions=(
            *kstatus(unknown(ConditionType.READY, "FactsUnknown", message), reconciling="WaitingForFacts"),
            false(ConditionType.SERVING, "FactsUnknown", message),
        ),
        due=_due(facts, now),
    )


def _wanted(facts: Facts, enabled_at: datetime | None, now: datetime) -> ServiceVerdict:
    """The verdict when the service should run."""
    previous = facts.previous
    serving = _serves(facts)
    first_running_at = previous.first_running_at
    if first_running_at is None and serving:
        first_running_at = now
    phase = _running_phase(facts, serving, first_running_at)
    return ServiceVerdict(
        phase=phase,
        billing_mode=_billing_mode(facts, now),
        stop_reasons=(),
        wanted=True,
        decided=True,
        enabled_at=enabled_at,
        first_running_at=first_running_at,
        conditions=(*_wanted_conditions(facts, phase), _serving_condition(facts, phase, serving)),
        due=_due(facts, now),
    )


def _running_phase(facts: Facts, serving: bool, first_running_at: datetime | None) -> Phase:
    """Creating until the service was ready once. When it resumes, Stopped until it is ready again."""
    if first_running_at is None:
        return Phase.CREATING
    if serving or facts.previous.phase is Phase.RUNNING or _target(facts) == 0:
        return Phase.RUNNING
    return Phase.STOPPED


def _target(facts: Facts) -> int | None:
    """The replicas of the service's own backend; None if its backend is shared or external."""
    return facts.service.replicas if facts.service.dedicated and facts.backend is not EXTERNAL else None


def _serves(facts: Facts) -> bool:
    """Whether the backend can take calls: one ready replica is enough (docs/decisions/002)."""
    backend = facts.backend
    if backend is EXTERNAL:
        return True
    return (
        isinstance(backend, BackendFacts)
        and backend.desired > 0
        and _ready(backend, facts.previous.phase) > 0
    )


def _ready(backend: BackendFacts, phase: Phase | None) -> int:
    """How many replicas are known to be ready, for a service in this phase.

    For a service in phase Running, figures of an older specification count. The deployment controller has
    not observed the change yet, so it has ended no pod and no call has to be refused. For a service that
    starts or resumes they do not count, because they may describe pods that are terminating.
    """
    return backend.ready if backend.current or phase is Phase.RUNNING else 0


def _wanted_conditions(facts: Facts, phase: Phase) -> tuple[ConditionVerdict, ...]:
    """Ready, Reconciling and Stalled of a service that should run."""
    if ceiling := limit_above_ceiling(facts):
        return kstatus(false(ConditionType.READY, "LimitAboveCeiling", ceiling), stalled="LimitAboveCeiling")
    if facts.backend_error:
        message = f"The API server rejects the backend of Model {facts.model_name}: {facts.backend_error}"
        return kstatus(false(ConditionType.READY, "BackendRejected", message), stalled="BackendRejected")
    backend, target = facts.backend, _target(facts)
    if backend is EXTERNAL:
        return kstatus(true(ConditionType.READY, "External", "An external provider serves the model"))
    if backend is MISSING and target == 0:
        # No Deployment is created only to have 0 replicas.
        return kstatus(true(ConditionType.READY, "ScaledToZero", "0 of 0 replicas are ready"))
    if backend is UNKNOWN or backend is MISSING:
        return _progressing(phase, "The backend's Deployment does not exist yet")
    expected = backend.desired if target is None else target
    if backend.rolled_out and backend.desired == expected and (expected > 0 or target == 0):
        reason = "ScaledToZero" if expected == 0 else "Running"
        return kstatus(true(ConditionType.READY, reason, f"{backend.ready} of {expected} replicas are ready"))
    if backend.failure and backend.current:
        return kstatus(false(ConditionType.READY, "BackendFailed", backend.failure), stalled="BackendFailed")
    return _progressing(phase, f"{_ready(backend, phase)} of {expected} replicas are ready")


def _progressing(phase: Phase, message: str) -> tuple[ConditionVerdict, ...]:
    reasons = {Phase.CREATING: "Creating", Phase.STOPPED: "Resuming", Phase.RUNNING: "Progressing"}
    reason = reasons[phase]
    return kstatus(false(ConditionType.READY, reason, message), reconciling=reason)


def _serving_condition(facts: Facts, phase: Phase, serving: bool) -> ConditionVerdict:
    """The condition Serving: whether calls are accepted now."""
    if phase is Phase.RUNNING and serving:
        return true(ConditionType.SERVING, "Serving", "Calls are accepted")
    if _target(facts) == 0:
        return false(
            ConditionType.SERVING,
            "ScaledToZero",
            "No replicas: spec.replicas is 0. Scale it up to serve calls",
        )
    if phase is Phase.CREATING:
        return false(ConditionType.SERVING, "Creating", "No replica has been ready yet")
    if phase is Phase.STOPPED:
        return false(ConditionType.SERVING, "Resuming", "No replica is ready yet")
    return false(ConditionType.SERVING, NO_REPLICA_READY, "No replica is ready")


def _billing_mode(facts: Facts, now: datetime) -> BillingMode:
    """What pays for calls. Being overdue does not change it; an unknown fact keeps the previous mode."""
    was = facts.previous.billing_mode
    if facts.service.reserves and (
        reservation_state(facts) is ReservationState.ACTIVE
        or (facts.reservation is UNKNOWN and was is BillingMode.TPM_RESERVATION)
    ):
        return BillingMode.TPM_RESERVATION
    if facts.service.postpaid:
        return BillingMode.PAY_AS_YOU_GO
    if not facts.service.trial:
        return BillingMode.NONE
    quota = facts.quota
    if quota is UNKNOWN:
        return BillingMode.FREE_QUOTA if was is BillingMode.FREE_QUOTA else BillingMode.NONE
    left = quota is not MISSING and quota.used < quota.total and now < quota.expires_at
    return BillingMode.FREE_QUOTA if left else BillingMode.NONE


def _due(facts: Facts, now: datetime) -> datetime | None:
    """When time alone changes the verdict: at the end of a free quota that pays for calls (B6).

    Nothing else here depends on time: the ledger ends reservations and reports it (B9).
    """
    quota = facts.quota
    if facts.service.postpaid or not facts.service.trial or quota is UNKNOWN or quota is MISSING:
        return None
    return quota.expires_at if now < quota.expires_at else None


def limit_above_ceiling(facts: Facts) -> str:
    """The message for a limit above the model's ceiling, which it names (B8), or ""."""
    if not isinstance(facts.model, ModelFacts):
        return ""
    for dimension, limit, ceiling in (
        ("rpm", facts.service.rpm_limit, facts.model.rpm_ceiling),
        ("tpm", facts.service.tpm_limit, facts.model.tpm_ceiling),
    ):
        if ceiling and limit > ceiling:
            return (
                f"Limit too high: spec.limits.{dimension} is {limit}, above the ceiling of {ceiling} of "
                f"Model {facts.model_name}. Set it to {ceiling} or less; until then {ceiling} applies"
            )
    return ""
