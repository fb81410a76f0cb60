"""Facts for tests: a healthy service on a good account with a ready backend; tests change what matters."""

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from farebox.api import (
    BillingMode,
    ConditionStatus,
    ConditionType,
    Phase,
    ReservationState,
    ServiceType,
    StopReason,
)
from farebox.domain.billing.money import Nano
from farebox.domain.conditions import ConditionVerdict
from farebox.domain.facts import (
    AccountFacts,
    BackendFacts,
    Facts,
    ModelFacts,
    Previous,
    QuotaFacts,
    ReservationFacts,
    ServiceFacts,
)
from farebox.domain.keys import ObjectKey
from farebox.domain.lifecycle import ServiceVerdict

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
EARLIER = NOW - timedelta(days=3)
ACCOUNT = ObjectKey("billing", "acme")
SERVICE = ObjectKey("team-a", "chat")
MODEL = "qwen3-8b"

READY = BackendFacts(desired=2, replicas=2, ready=2, updated=2, current=True)
EMPTY = BackendFacts(desired=0, replicas=0, ready=0, updated=0, current=True)
STARTING = BackendFacts(desired=2, replicas=2, ready=0, updated=2, current=True)

GOOD_ACCOUNT = AccountFacts(ACCOUNT, "USD", available=Nano(5), allows=True)
POOR_ACCOUNT = replace(GOOD_ACCOUNT, available=Nano(0))
GOOD_MODEL = ModelFacts(MODEL, retired=False, currency="USD")
QUOTA = QuotaFacts(total=1000, used=10, expires_at=NOW + timedelta(days=30))

TRIAL: dict[str, Any] = {"postpaid": False, "trial": True}
RESERVED: dict[str, Any] = {"postpaid": False, "reserves": True}

NEVER = Previous()
NOT_ENABLED = Previous(Phase.NOT_ENABLED, BillingMode.NONE, (StopReason.POSTPAID_DISABLED,))
CREATING = Previous(Phase.CREATING, BillingMode.PAY_AS_YOU_GO, (), EARLIER)
RUNNING = Previous(Phase.RUNNING, BillingMode.PAY_AS_YOU_GO, (), EARLIER, EARLIER)
RESUMING = Previous(Phase.STOPPED, BillingMode.PAY_AS_YOU_GO, (), EARLIER, EARLIER)


def stopped(
    *reasons: StopReason, ran: bool = True, mode: BillingMode = BillingMode.PAY_AS_YOU_GO
) -> Previous:
    """A service that is stopped for these reasons; `ran` says that it was ready before."""
    return Previous(Phase.STOPPED, mode, reasons, EARLIER, EARLIER if ran else None)


def reserved(state: ReservationState) -> ReservationFacts:
    """A reservation in a state, with the ledger's message if it is unpaid."""
    message = (
        "A term costs more than is available. Top up the account" if state is ReservationState.UNPAID else ""
    )
    return ReservationFacts(state, message)


def facts(
    account: Any = GOOD_ACCOUNT,
    model: Any = GOOD_MODEL,
    backend: Any = READY,
    previous: Previous = RUNNING,
    quota: Any = QUOTA,
    reservation: Any = ReservationState.ACTIVE,
    backend_error: str = "",
    **service: Any,
) -> Facts:
    """Facts of a dedicated, pay-as-you-go Custom service with two replicas, all well; change what matters."""
    given: dict[str, Any] = {
        "key": SERVICE,
        "type": ServiceType.CUSTOM,
        "postpaid": True,
        "trial": False,
        "reserves": False,
        "dedicated": True,
        "replicas": 2,
    }
    return Facts(
        service=ServiceFacts(**(given | service)),
        account=account,
        model=model,
        backend=backend,
        account_key=ACCOUNT,
        model_name=MODEL,
        quota=quota,
        reservation=reserved(reservation) if isinstance(reservation, ReservationState) else reservation,
        backend_error=backend_error,
        previous=previous,
    )


def remembered(verdict: ServiceVerdict) -> Previous:
    """The previous state that the next decision reads from the status of this verdict."""
    return Previous(**{field.name: getattr(verdict, field.name) for field in fields(Previous)})


def condition(verdict: ServiceVerdict, type_: ConditionType) -> ConditionVerdict:
    """The one condition of a type."""
    (found,) = (condition for condition in verdict.conditions if condition.type is type_)
    return found


def said(verdict: ServiceVerdict) -> dict[str, str]:
    """The conditions as a reader of `kubectl get -o wide` sees them: "Status Reason"."""
    return {c.type.value: f"{c.status.value} {c.reason}" for c in verdict.conditions}


def is_true(verdict: ServiceVerdict, type_: ConditionType) -> bool:
    """Whether a condition is True."""
    return condition(verdict, type_).status is ConditionStatus.TRUE
