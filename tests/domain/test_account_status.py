"""The state of an account, from its balance and its terms (B3)."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.api import AccountState, ConditionStatus, ConditionType
from farebox.domain.account_status import AccountStatusFacts, AccountVerdict, decide_account, top_up_hint
from farebox.domain.billing.money import Nano, format_amount, parse_amount
from farebox.domain.facts import UNKNOWN, Unknown
from tests.domain.build import EARLIER, NOW
from tests.domain.strategies import THOROUGH

SOLVENT = AccountStatusFacts(
    currency="USD", credit_limit=parse_amount("10"), low_balance=parse_amount("0"), balance=parse_amount("5")
)


def conditions(verdict: AccountVerdict) -> dict[str, str]:
    return {c.type.value: f"{c.status.value} {c.reason}" for c in verdict.conditions}


def message(verdict: AccountVerdict, type_: ConditionType) -> str:
    return next(c.message for c in verdict.conditions if c.type is type_)


@pytest.mark.parametrize(
    ("balance", "limit", "state", "left"),
    [
        ("5", "10", AccountState.ACTIVE, "15.00"),
        ("0.000000001", "0", AccountState.ACTIVE, "0.000000001"),
        ("-9.999999999", "10", AccountState.ACTIVE, "0.000000001"),
        ("0", "0", AccountState.OVERDUE, "0.00"),
        ("-10", "10", AccountState.OVERDUE, "0.00"),
        ("-12.5", "10", AccountState.OVERDUE, "-2.50"),
    ],
)
def test_an_account_is_overdue_when_nothing_is_left(
    balance: str, limit: str, state: AccountState, left: str
) -> None:
    facts = replace(SOLVENT, balance=parse_amount(balance), credit_limit=parse_amount(limit))
    verdict = decide_account(facts, NOW)
    assert (verdict.state, verdict.available) == (state, left)
    assert verdict.balance == format_amount(parse_amount(balance))
    assert verdict.overdue_since == (NOW if state is AccountState.OVERDUE else None)
    assert conditions(verdict)["Ready"] == f"True {state.value}"
    assert f"{left} USD available" in message(verdict, ConditionType.READY)


@pytest.mark.parametrize(("left", "words"), [("0", "Any top-up"), ("-2.5", "more than 2.50 USD")])
def test_an_overdue_account_says_how_much_is_missing(left: str, words: str) -> None:
    facts = replace(SOLVENT, credit_limit=Nano(0), balance=parse_amount(left))
    assert words in message(decide_account(facts, NOW), ConditionType.READY)


@THOROUGH
@given(st.integers(max_value=0), st.integers(min_value=1))
def test_b3_the_missing_amount_is_the_smallest_that_helps(left: int, extra: int) -> None:
    """A top-up of exactly that amount changes nothing; the smallest larger one reactivates the account."""
    sentence = top_up_hint(Nano(left), "USD")
    needed = 0 if left == 0 else -left
    assert sentence.startswith("Any top-up" if left == 0 else f"Top up more than {format_amount(needed)} USD")
    assert left + needed <= 0 < left + needed + extra


def test_overdue_since_is_set_once_and_removed_with_the_debt() -> None:
    facts = replace(SOLVENT, balance=Nano(0), credit_limit=Nano(0), overdue_since=EARLIER)
    assert decide_account(facts, NOW).overdue_since == EARLIER
    assert decide_account(replace(facts, balance=Nano(1)), NOW).overdue_since is None


@pytest.mark.parametrize("since", [None, EARLIER])
def test_an_unknown_balance_keeps_the_reported_state(since: object) -> None:
    facts = replace(SOLVENT, balance=UNKNOWN, overdue_since=EARLIER if since else None)
    verdict = decide_account(facts, NOW)
    assert (verdict.state, verdict.balance, verdict.available) == (None, None, None)
    assert verdict.overdue_since == since
    assert conditions(verdict) == {
        "Ready": "Unknown BalanceUnknown",
        "Reconciling": "True BalanceUnknown",
        "Stalled": "False NotStalled",
        "LowBalance": "Unknown BalanceUnknown",
    }


@pytest.mark.parametrize("balance", [UNKNOWN, Nano(5)])
def test_rejected_terms_are_stalled_with_the_ledgers_message(balance: Nano | Unknown) -> None:
    verdict = decide_account(replace(SOLVENT, balance=balance, refusal="kept in USD since"), NOW)
    assert conditions(verdict)["Stalled"] == "True CurrencyChanged"
    assert message(verdict, ConditionType.STALLED) == "kept in USD since"
    assert verdict.state is None


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        ("0", "False NoThreshold"),
        ("14.999999999", "False AboveThreshold"),
        ("15", "False AboveThreshold"),
        ("15.000000001", "True BelowThreshold"),
    ],
)
def test_low_balance_is_true_below_its_threshold(threshold: str, expected: str) -> None:
    verdict = decide_account(replace(SOLVENT, low_balance=parse_amount(threshold)), NOW)
    assert conditions(verdict)["LowBalance"] == expected


amounts = st.integers(-(10**12), 10**12).map(Nano)


@THOROUGH
@given(
    st.builds(
        AccountStatusFacts,
        currency=st.just("USD"),
        credit_limit=st.integers(0, 10**12).map(Nano),
        low_balance=st.integers(0, 10**12).map(Nano),
        balance=st.one_of(st.just(UNKNOWN), amounts),
        refusal=st.sampled_from(("", "refused")),
        overdue_since=st.sampled_from((None, EARLIER)),
    )
)
def test_b20_a_second_decision_is_the_same(facts: AccountStatusFacts) -> None:
    """At any time. Exactly one of Ready, Reconciling and Stalled is True."""
    verdict = decide_account(facts, NOW)
    later = NOW + timedelta(hours=1)
    assert decide_account(replace(facts, overdue_since=verdict.overdue_since), later) == verdict
    true = {c.type for c in verdict.conditions if c.status is ConditionStatus.TRUE}
    assert len(true & {ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED}) == 1
