"""The state of an account, from its balance and its terms. Pure."""

from dataclasses import dataclass
from datetime import datetime

from farebox.api import AccountState, ConditionType
from farebox.domain.billing.money import Nano, available, format_amount, is_overdue
from farebox.domain.conditions import ConditionVerdict, false, kstatus, true, unknown
from farebox.domain.facts import UNKNOWN, Unknown


@dataclass(frozen=True, slots=True)
class AccountStatusFacts:
    """An account: its spec, and its balance from the ledger.

    `refusal` is the ledger's message when it rejects the account's terms, or "".
    """

    currency: str
    credit_limit: Nano
    low_balance: Nano
    balance: Nano | Unknown
    refusal: str = ""
    overdue_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class AccountVerdict:
    """The status of an account. A field that is None keeps the value that was reported before."""

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
        message = "The meter is unreachable, so the balance is unknown. Services keep their current state"
        ready = unknown(ConditionType.READY, "BalanceUnknown", message)
        return _without_balance(facts, kstatus(ready, reconciling="BalanceUnknown"))
    left = available(facts.balance, facts.credit_limit)
    overdue = is_overdue(facts.balance, facts.credit_limit)
    state = AccountState.OVERDUE if overdue else AccountState.ACTIVE
    message = f"{format_amount(left)} {facts.currency} available"
    if overdue:
        message += f". {top_up_hint(left, facts.currency)}"
    return AccountVerdict(
        state=state,
        balance=format_amount(facts.balance),
        available=format_amount(left),
        overdue_since=(facts.overdue_since or now) if overdue else None,
        # An overdue account matches its spec, so it is Ready. Its services are the objects that are stalled.
        conditions=(
            *kstatus(true(ConditionType.READY, state.value, message)),
            _low_balance(left, facts.low_balance, facts.currency),
        ),
    )


def _without_balance(facts: AccountStatusFacts, conditions: tuple[ConditionVerdict, ...]) -> AccountVerdict:
    low = unknown(ConditionType.LOW_BALANCE, "BalanceUnknown")
    return AccountVerdict(None, None, None, facts.overdue_since, (*conditions, low))


def _low_balance(left: Nano, threshold: Nano, currency: str) -> ConditionVerdict:
    """LowBalance: less is available than spec.lowBalance (0: never)."""
    if threshold == 0:
        return false(ConditionType.LOW_BALANCE, "NoThreshold", "No warning: spec.lowBalance is 0")
    if left < threshold:
        message = (
            f"{format_amount(left)} {currency} available, below spec.lowBalance of {format_amount(threshold)}"
        )
        return true(ConditionType.LOW_BALANCE, "BelowThreshold", message)
    return false(
        ConditionType.LOW_BALANCE, "AboveThreshold", f"Above spec.lowBalance of {format_amount(threshold)}"
    )


def top_up_hint(left: Nano, currency: str) -> str:
    """How much to top up an overdue account. `left` is its available amount, 0 or less."""
    assert left <= 0, "only an overdue account needs a top-up"
    if left == 0:
        return "Any top-up reactivates the account"
    return f"Top up more than {format_amount(-left)} {currency} to reactivate the account"
