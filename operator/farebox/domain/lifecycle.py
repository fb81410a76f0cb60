"""The state of a service: `decide(facts, now)` is the one place where phases come from.

Pure: facts and a time go in, a verdict comes out. It never reads a clock, an API server or a ledger, and it
never saves replica counts: what runs is `wanted ? spec.replicas : 0` (product.md, States).
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from farebox.api import BillingMode, ConditionType, Phase, ReservationState, ServiceType, StopReason
from farebox.domain.conditions import ConditionVerdict, false, kstatus, true, unknown
from farebox.domain.facts import EXTERNAL, MISSING, UNKNOWN, BackendFacts, Facts, ModelFacts
from farebox.domain.stop_reasons import Evaluation, evaluate, reservation_state

NO_REPLICA_READY: Final = "NoReplicaReady"
"""Reason of Serving: it runs, and nothing answers."""


@dataclass(frozen=True, slots=True)
class ServiceVerdict:
    """What a service is, and what it should have.

    `phase` is None for a new service about which too little is known. `wanted` says whether its backend
    should run; `decided` is False while a missing fact holds the service where it was. `due` is when to look
    again at the latest, as time alone may change this then; None: only when something else changes.
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

    Unknown facts never change a phase, nor stop or start anything: a reason that cannot be told stays as it
    was, and a service that did not run before does not start until every reason is known to be clear.
    """
    findings = evaluate(facts, now)
    previous = facts.previous
    stop_reasons = tuple(
        reason
        for reason in StopReason
        if reason in findings.active or (reason in findings.unknown and reason in previous.stop_reasons)
    )
    enabled_at = previous.enabled_at
    if enabled_at is None and StopReason.POSTPAID_DISABLED not in stop_reasons:
        enabled_at = now

    if stop_reasons:
        return _stopped(facts, findings, stop_reasons, enabled_at, now)
    if findings.unknown and not previous.wanted:
        return _undecided(facts, findings, enabled_at, now)
    return _wanted(facts, enabled_at, now)


def desired_replicas(wanted: bool, replicas: int) -> int:
    """How many replicas a backend should have now: nothing is saved on stop (B3, B5)."""
    return replicas if wanted else 0


def _stopped(
    facts: Facts,
    findings: Evaluation,
    reasons: tuple[StopReason, ...],
    enabled_at: datetime | None,
    now: datetime,
) -> ServiceVerdict:
    """At least one reason to stop holds."""
    never_enabled = (
        facts.service.type is ServiceType.DEFAULT
        and enabled_at is None
        and reasons == (StopReason.POSTPAID_DISABLED,)
    )
    phase = Phase.NOT_ENABLED if never_enabled else Phase.STOPPED
    message = "; ".join(
        findings.active.get(reason) or f"still {reason.value}: waiting for {findings.unknown[reason]}"
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
    """Off because its owner wants it off is as the spec asks; any other reason is a standstill."""
    if StopReason.POSTPAID_DISABLED not in reasons:
        first = reasons[0].value
        return kstatus(false(ConditionType.READY, first, message), stalled=first)
    if ceiling := limit_above_ceiling(facts):
        return kstatus(false(ConditionType.READY, "LimitAboveCeiling", ceiling), stalled="LimitAboveCeiling")
    backend = facts.backend
    if facts.service.dedicated and isinstance(backend, BackendFacts) and backend.replicas > 0:
        stopping = false(ConditionType.READY, "Stopping", f"{backend.replicas} replicas are going away")
        return kstatus(stopping, reconciling="Stopping")
    reason = "NotEnabled" if phase is Phase.NOT_ENABLED else "Disabled"
    return kstatus(true(ConditionType.READY, reason, message))


def _undecided(
    facts: Facts, findings: Evaluation, enabled_at: datetime | None, now: datetime
) -> ServiceVerdict:
    """Nothing speaks against starting, but not everything is known: it stays exactly as it was."""
    previous = facts.previous
    missing = ", ".join(dict.fromkeys(findings.unknown.values()))
    message = f"waiting for {missing}; until it is known the service stays as it is"
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
    """Nothing speaks against running."""
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
    """Creating until it was ready once; on the way back from a stop, Stopped until it is ready again."""
    if first_running_at is None:
        return Phase.CREATING
    if serving or facts.previous.phase is Phase.RUNNING or _target(facts) == 0:
        return Phase.RUNNING
    return Phase.STOPPED


def _target(facts: Facts) -> int | None:
    """The replicas that this service asks for by itself; None where others decide (shared, external)."""
    return facts.service.replicas if facts.service.dedicated and facts.backend is not EXTERNAL else None


def _serves(facts: Facts) -> bool:
    """Whether the backend can take calls: one ready replica is enough (docs/decisions/002)."""
    backend = facts.backend
    if backend is EXTERNAL:
        return True
    return isinstance(backend, BackendFacts) and backend.desired > 0 and _ready(facts, backend) > 0


def _ready(facts: Facts, backend: BackendFacts) -> int:
    """How many replicas are known to be ready.

    Figures about an older specification count for a service that runs: a scale or a roll-out that the
    Deployment's controller has not looked at yet has ended no pod, so no call is refused for it. On the way
    up they do not: they may be of the pods from before a stop, which are going.
    """
    return backend.ready if backend.current or facts.previous.phase is Phase.RUNNING else 0


def _wanted_conditions(facts: Facts, phase: Phase) -> tuple[ConditionVerdict, ...]:
    """Ready, Reconciling and Stalled of a service that should run."""
    if ceiling := limit_above_ceiling(facts):
        return kstatus(false(ConditionType.READY, "LimitAboveCeiling", ceiling), stalled="LimitAboveCeiling")
    if facts.backend_error:
        message = f"the API server refuses the backend of Model {facts.model_name}: {facts.backend_error}"
        return kstatus(false(ConditionType.READY, "BackendRejected", message), stalled="BackendRejected")
    backend, target = facts.backend, _target(facts)
    if backend is EXTERNAL:
        return kstatus(true(ConditionType.READY, "External", "served by an external provider"))
    if backend is MISSING and target == 0:
        # A Deployment is not made just to be empty.
        return kstatus(true(ConditionType.READY, "ScaledToZero", "0 of 0 replicas are ready"))
    if backend is UNKNOWN or backend is MISSING:
        return _progressing(phase, "the backend's Deployment is not there yet")
    expected = backend.desired if target is None else target
    if backend.rolled_out and backend.desired == expected and (expected > 0 or target == 0):
        reason = "ScaledToZero" if expected == 0 else "Running"
        return kstatus(true(ConditionType.READY, reason, f"{backend.ready} of {expected} replicas are ready"))
    if backend.failure and backend.current:
        return kstatus(false(ConditionType.READY, "BackendFailed", backend.failure), stalled="BackendFailed")
    return _progressing(phase, f"{_ready(facts, backend)} of {expected} replicas are ready")


def _progressing(phase: Phase, message: str) -> tuple[ConditionVerdict, ...]:
    reasons = {Phase.CREATING: "Creating", Phase.STOPPED: "Resuming", Phase.RUNNING: "Progressing"}
    reason = reasons[phase]
    return kstatus(false(ConditionType.READY, reason, message), reconciling=reason)


def _serving_condition(facts: Facts, phase: Phase, serving: bool) -> ConditionVerdict:
    """Whether calls are accepted now."""
    if phase is Phase.RUNNING and serving:
        return true(ConditionType.SERVING, "Serving", "calls are accepted")
    if _target(facts) == 0:
        return false(ConditionType.SERVING, "ScaledToZero", "spec.replicas is 0: scale it up to serve")
    if phase is Phase.CREATING:
        return false(ConditionType.SERVING, "Creating", "no replica has been ready yet")
    if phase is Phase.STOPPED:
        return false(ConditionType.SERVING, "Resuming", "no replica is ready yet")
    return false(ConditionType.SERVING, NO_REPLICA_READY, "no replica is ready")


def _billing_mode(facts: Facts, now: datetime) -> BillingMode:
    """How calls are paid; an overdue pay-as-you-go service stays one. What is unknown stays as it was."""
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
    """When time alone may change the verdict: at the end of a free quota that pays for calls (B6).

    Nothing else here looks at the time: reservations end in the ledger, which tells of it (B9).
    """
    quota = facts.quota
    if facts.service.postpaid or not facts.service.trial or quota is UNKNOWN or quota is MISSING:
        return None
    return quota.expires_at if now < quota.expires_at else None


def limit_above_ceiling(facts: Facts) -> str:
    """The sentence for a limit above the model's ceiling, which it names (B8); "" when there is none."""
    if not isinstance(facts.model, ModelFacts):
        return ""
    for dimension, limit, ceiling in (
        ("rpm", facts.service.rpm_limit, facts.model.rpm_ceiling),
        ("tpm", facts.service.tpm_limit, facts.model.tpm_ceiling),
    ):
        if ceiling and limit > ceiling:
            return (
                f"spec.limits.{dimension} is {limit}, above the ceiling of {ceiling} of Model "
                f"{facts.model_name}: set it to {ceiling} or less; until then {ceiling} applies"
            )
    return ""
