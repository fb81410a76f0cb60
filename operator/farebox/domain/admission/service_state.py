"""The state of a service and of its account, as a call would meet it now (B31). Pure."""

from datetime import datetime
from typing import Final, Literal, NamedTuple

from farebox.domain.admission.rules import (
    AdmissionRequest,
    free_tokens_in_time,
    free_tokens_known,
    free_tokens_left,
    money_known,
    not_overdue,
)
from farebox.domain.admission.types import (
    AvailableFunds,
    Call,
    Denied,
    KeyPolicy,
    ServicePolicy,
    Snapshot,
)
from farebox.domain.facts import UNKNOWN


class ServiceState(NamedTuple):
    """Whether calls are served. `reason` is that of the 402 or 503 that a call would get; "" if active."""

    state: Literal["active", "inactive", "unknown"]
    reason: str = ""


_ACTIVE: Final = ServiceState("active")
_CALL: Final = Call("", None, "", 0, 1)
"""A call that asks for nothing: the rules that are checked here do not depend on it."""


def service_state(key: KeyPolicy, service: ServicePolicy, snapshot: Snapshot, now: datetime) -> ServiceState:
    """The state of a service that the key may call, by the rules of admission in their order (B13, B18)."""
    try:
        request = AdmissionRequest.of_served(_CALL, key, service, snapshot, now)
        if request.needs_money:
            money_known(request)
            not_overdue(request)
        elif request.on_trial:
            free_tokens_known(request)
            free_tokens_in_time(request)
            free_tokens_left(request)
    except Denied as denied:
        if denied.status == 503:
            return ServiceState("unknown", denied.code.upper())
        return ServiceState("inactive", denied.message.rpartition(": ")[2])
    return _ACTIVE


def account_state(funds: AvailableFunds) -> Literal["active", "overdue", "unknown"]:
    """Whether an account can pay. The amount is not for every holder of a key."""
    if not funds.fresh or funds.available is UNKNOWN:
        return "unknown"
    return "active" if funds.available > 0 else "overdue"
