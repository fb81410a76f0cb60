"""Turns verdicts into status patches: what changed, and whether the write can wait. Pure.

A status has states and figures. States (phase, reasons, conditions' status) are written at once. Figures
(replica counts, balances, the text of messages) are written with the next state, or some time after the last
write, so that traffic does not cause writes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any, Final

from farebox.api import (
    Condition,
    FreeQuotaStatus,
    InferenceServiceStatus,
    ReservationStatus,
    Status,
)
from farebox.domain.conditions import ConditionVerdict
from farebox.domain.facts import (
    MISSING,
    UNKNOWN,
    BackendFacts,
    Missing,
    QuotaFacts,
    ReservationFacts,
    Unknown,
)
from farebox.domain.lifecycle import ServiceVerdict

JSONObject = dict[str, Any]


class Urgency(IntEnum):
    """When a change has to be written. The most urgent part decides."""

    NOW = 0
    """A state: phase, reasons, what conditions say."""
    SOON = 1
    """Counts, which move with other objects' states."""
    LATER = 2
    """Figures that move with traffic, and the wording of messages."""


_MESSAGE_LIMIT: Final = 4096
"""Characters of a message: the API server's own about a bad template can be longer than a status may be."""
_SOON: Final = frozenset({"replicas", "readyReplicas", "services"})
_LATER: Final = frozenset({"balance", "available", "ledgerSequence", "freeQuota"})


@dataclass(frozen=True, slots=True)
class StatusChange:
    """A merge patch of the status (null removes a field), and when it is due."""

    patch: JSONObject
    urgency: Urgency


def service_status(
    previous: InferenceServiceStatus,
    verdict: ServiceVerdict,
    backend: BackendFacts | None,
    quota: QuotaFacts | Missing | Unknown,
    reservation: ReservationFacts | Missing | Unknown,
    *,
    generation: int,
    selector: str | None,
    endpoint: str,
    backend_url: str | None,
    now: datetime,
) -> InferenceServiceStatus:
    """Return the status of a service after a verdict. `backend` is None if it has no pods to report.

    Args:
        endpoint: the base URL for callers.
        backend_url: the address behind the gateway; None: unknown.
    """
    moved = verdict.phase != previous.phase or verdict.stop_reasons != tuple(previous.stop_reasons)
    return InferenceServiceStatus(
        observed_generation=generation,
        conditions=conditions(previous, verdict.conditions, generation, now),
        phase=verdict.phase,
        billing_mode=verdict.billing_mode,
        stop_reasons=verdict.stop_reasons,
        replicas=backend.replicas if backend else 0,
        ready_replicas=backend.ready if backend else 0,
        selector=selector,
        endpoint=endpoint,
        backend=backend_url,
        enabled_at=verdict.enabled_at,
        first_running_at=verdict.first_running_at,
        last_transition_time=now if moved else previous.last_transition_time,
        free_quota=previous.free_quota if quota is UNKNOWN else _quota_status(quota),
        reservation=previous.reservation if reservation is UNKNOWN else _reservation_status(reservation),
    )


def _quota_status(quota: QuotaFacts | Missing) -> FreeQuotaStatus | None:
    if quota is MISSING:
        return None
    return FreeQuotaStatus(total=quota.total, used=quota.used, expires_at=quota.expires_at)


def _reservation_status(reservation: ReservationFacts | Missing) -> ReservationStatus | None:
    if reservation is MISSING:
        return None
    return ReservationStatus(
        state=reservation.state,
        period_start=reservation.period_start,
        period_end=reservation.period_end,
        message=reservation.message or None,
    )


def conditions(
    previous: Status, verdicts: Iterable[ConditionVerdict], generation: int, now: datetime
) -> tuple[Condition, ...]:
    """Return conditions with their times: lastTransitionTime changes only when the status does."""
    return tuple(
        Condition(
            type=verdict.type,
            status=verdict.status,
            reason=verdict.reason,
            message=_shortened(verdict.message),
            observed_generation=generation,
            last_transition_time=(
                before.last_transition_time
                if (before := previous.condition(verdict.type)) is not None
                and before.status == verdict.status
                else now
            ),
        )
        for verdict in verdicts
    )


def _shortened(message: str) -> str:
    return message if len(message) <= _MESSAGE_LIMIT else f"{message[: _MESSAGE_LIMIT - 4]} ..."


def status_change(old: Status, new: Status) -> StatusChange | None:
    """Return what has to be written to get from one status to another; None for nothing."""
    fields = type(new).model_fields
    if old.observed_generation:
        moved = {name for name in fields if getattr(old, name) != getattr(new, name)}
        removed = {fields[name].alias or name: None for name in moved if getattr(new, name) is None}
    else:
        # The first write contains zeros too: columns and autoscalers read them.
        moved, removed = set(fields), {}
    if not moved:
        return None
    # Only what changed is serialized: most reconciles change nothing.
    patch = removed | new.model_dump(by_alias=True, exclude_none=True, mode="json", include=moved)
    return StatusChange(patch, min(_urgency(field, old, new) for field in patch))


def _urgency(field: str, old: Status, new: Status) -> Urgency:
    if field == "conditions":
        return Urgency.LATER if _states(old) == _states(new) else Urgency.NOW
    if field == "freeQuota" and _has_quota_left(old) != _has_quota_left(new):
        return Urgency.NOW
    if field in _LATER:
        return Urgency.LATER
    return Urgency.SOON if field in _SOON else Urgency.NOW


def _has_quota_left(status: Status) -> bool | None:
    """Return whether some free quota is left; None without a quota. Its end is a state, not a figure."""
    quota = status.free_quota if isinstance(status, InferenceServiceStatus) else None
    return None if quota is None else quota.used < quota.total


def _states(status: Status) -> list[tuple[str, str, str, int | None]]:
    return [(c.type, c.status, c.reason, c.observed_generation) for c in status.conditions]
