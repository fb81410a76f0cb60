"""The state of an account, from its balance and terms. Pure."""

from dataclasses import dataclass
from datetime import datetime

from farebox.api import AccountState, ConditionType
from farebox.domain.billing.money import Nano, available, format_amount, is_overdue
from farebox.domain.conditions import ConditionVerdict, false, kstatus, true, unknown
from farebox.domain.facts import UNKNOWN, Unknown


@dataclass(frozen=True, slots=True)
class AccountStatusFacts:
    """An account as its owner declares it and the ledger has it.

    `refusal` is the ledger's sentence when it did not take the terms, or "".
    """

    currency: str
    credit_limit: Nano
    low_balance: Nano
    balance: Nano | Unknown
    refusal: str = ""
    overdue_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class AccountVerdict:
    """What to report of an account; None where it is not known, which leaves what was reported."""

    state: AccountState | None
    balance: str | None
    available: str | None
    overdue_since: datetime | None
    conditions: tuple[ConditionVerdict, ...]


def decide_account(facts: AccountStatusFacts, now: datetime) -> AccountVerdict:
    """The state of an account (B3): overdue when balance + credit limit is 0 or less."""
    if facts.refusal:
        ready = false(ConditionType.READY, "CurrencyChanged", facts.refusal)
        return _without_balance(facts, kstatus(ready, stalled="CurrencyChanged"))
    if facts.balance is UNKNOWN:
        message = "the ledger was not heard; services stay as they are until it is"
        ready = unknown(ConditionType.READY, "BalanceUnknown", message)
        return _without_balance(facts, kstatus(ready, reconciling="BalanceUnknown"))
    left = available(facts.balance, facts.credit_limit)
    overdue = is_overdue(facts.balance, facts.credit_limit)
    state = AccountState.OVERDUE if overdue else AccountState.ACTIVE
    message = f"{format_amount(left)} {facts.currency} available"
    if overdue:
        message += f"; {top_up_hint(left, facts.currency)}"
    return AccountVerdict(
        state=state,
        balance=format_amount(facts.balance),
        available=format_amount(left),
        overdue_since=(facts.overdue_since or now) if overdue else None,
        # An overdue account is as its spec asks: it is the services on it that stand still.
        conditions=(
            *kstatus(true(ConditionType.READY, state.value, message)),
            _low_balance(left, facts.low_balance, facts.currency),
        ),
    )


def _without_balance(facts: AccountStatusFacts, conditions: tuple[ConditionVerdict, ...]) -> AccountVerdict:
    low = unknown(ConditionType.LOW_BALANCE, "BalanceUnknown")
    return AccountVerdict(None, None, None, facts.overdue_since, (*conditions, low))


def _low_balance(left: Nano, threshold: Nano, currency: str) -> ConditionVerdict:
    """Whether the owner should be warned: less is available than spec.lowBalance (0: never)."""
    if threshold == 0:
        return false(ConditionType.LOW_BALANCE, "NoThreshold", "spec.lowBalance is 0: no warning is given")
    if left < threshold:
        message = (
            f"{format_amount(left)} {currency} available, below spec.lowBalance of {format_amount(threshold)}"
        )
        return true(ConditionType.LOW_BALANCE, "BelowThreshold", message)
    return false(
        ConditionType.LOW_BALANCE, "AboveThreshold", f"spec.lowBalance is {format_amount(threshold)}"
    )


def top_up_hint(left: Nano, currency: str) -> str:
    """How much an overdue account lacks: `left` is what it has available, 0 or less."""
    assert left <= 0, "only an overdue account lacks money"
    if left == 0:
        return "any top-up makes it active"
    return f"more than {format_amount(-left)} {currency} must be topped up to make it active"
