"""Conditions as a decision returns them, without times and generations, which the writer adds."""

from dataclasses import dataclass

from farebox.api import ConditionStatus, ConditionType


@dataclass(frozen=True, slots=True)
class ConditionVerdict:
    """One condition: `reason` is a CamelCase word for machines, `message` is text for people."""

    type: ConditionType
    status: ConditionStatus
    reason: str
    message: str


def true(type_: ConditionType, reason: str, message: str = "") -> ConditionVerdict:
    """A condition with status True."""
    return ConditionVerdict(type_, ConditionStatus.TRUE, reason, message)


def false(type_: ConditionType, reason: str, message: str = "") -> ConditionVerdict:
    """A condition with status False."""
    return ConditionVerdict(type_, ConditionStatus.FALSE, reason, message)


def unknown(type_: ConditionType, reason: str, message: str = "") -> ConditionVerdict:
    """A condition with status Unknown."""
    return ConditionVerdict(type_, ConditionStatus.UNKNOWN, reason, message)


def kstatus(
    ready: ConditionVerdict, *, reconciling: str | None = None, stalled: str | None = None
) -> tuple[ConditionVerdict, ConditionVerdict, ConditionVerdict]:
    """Ready, Reconciling and Stalled by the kstatus rules: at most one of the last two is True.

    Args:
        reconciling, stalled: reason of that condition if it is True; its message is that of Ready.
    """
    assert reconciling is None or stalled is None, "Reconciling and Stalled exclude each other"
    return (
        ready,
        _abnormal(ConditionType.RECONCILING, reconciling, ready.message),
        _abnormal(ConditionType.STALLED, stalled, ready.message),
    )


def _abnormal(type_: ConditionType, reason: str | None, message: str) -> ConditionVerdict:
    if reason is None:
        return false(type_, f"Not{type_.value}")
    return true(type_, reason, message)
