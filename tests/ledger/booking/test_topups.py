"""B10, B11: a top-up counts once for each account and reference, and no history is lost."""

import asyncio
from typing import Any

import pytest

from farebox.domain.billing.money import MAX_NANO, Nano
from farebox.domain.keys import ObjectKey
from farebox.errors import LedgerRefused
from farebox.ledger.engine import Ledger
from tests.ledger.support import ACME, CALL_CHARGE, FACTS, START, Clock, balance, terms, topup, usage

TEN = 10_000_000_000


async def test_a_topup_is_posted_with_a_receipt(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    await ledger.ingest([usage()])
    posted = await ledger.post_topup(topup(amount="10"))
    assert (posted.posted_at, posted.duplicate) == (START, False)
    assert posted.balance_after == posted.account.balance == TEN - CALL_CHARGE
    assert posted.account.sequence == await ledger.head()


async def test_a_repeated_topup_returns_the_first_receipt_and_the_current_account(
    ledger: Ledger, clock: Clock
) -> None:
    await ledger.record(FACTS)
    first = await ledger.post_topup(topup())
    await ledger.ingest([usage()])
    clock.advance(days=400)
    again = await ledger.post_topup(topup(source="restored/other-name"))
    assert (again.posted_at, again.balance_after, again.duplicate) == (START, first.balance_after, True)
    assert again.account.balance == await balance(ledger) == TEN - CALL_CHARGE


@pytest.mark.parametrize("changes", [{"amount": Nano(1)}, {"kind": "Adjustment"}])
async def test_another_amount_or_kind_under_a_used_reference_is_refused(
    ledger: Ledger, changes: dict[str, Any]
) -> None:
    await ledger.record([terms()])
    await ledger.post_topup(topup())
    with pytest.raises(LedgerRefused, match=r"Payment of 10\.00 USD \(billing/pay_1\)") as refused:
        await ledger.post_topup(topup(**changes))
    assert refused.value.reason == "ReferenceConflict"
    assert await balance(ledger) == TEN


async def test_the_same_reference_on_another_account_is_another_topup(ledger: Ledger) -> None:
    other = ObjectKey("billing", "other")
    await ledger.record([terms(), terms(other)])
    await ledger.post_topup(topup())
    assert (await ledger.post_topup(topup(account=other))).duplicate is False


async def test_a_topup_of_an_unrecorded_account_is_refused(ledger: Ledger) -> None:
    with pytest.raises(LedgerRefused) as refused:
        await ledger.post_topup(topup())
    assert refused.value.reason == "AccountNotFound"
    await ledger.record([terms()])
    assert (await ledger.post_topup(topup())).duplicate is False


@pytest.mark.parametrize(
    ("kind", "amount"),
    [
        ("Payment", 0),
        ("Payment", -1),
        ("Adjustment", 0),
        ("Payment", MAX_NANO + 1),
        ("Adjustment", -MAX_NANO - 1),
    ],
)
async def test_invalid_amounts_are_refused(ledger: Ledger, kind: str, amount: int) -> None:
    await ledger.record([terms()])
    with pytest.raises(LedgerRefused) as refused:
        await ledger.post_topup(topup(kind=kind, amount=Nano(amount)))
    assert refused.value.reason == "AmountOutOfRange"
    assert await balance(ledger) == 0


async def test_a_balance_beyond_64_bits_is_refused_and_not_corrupted(ledger: Ledger) -> None:
    await ledger.record([terms()])
    await ledger.post_topup(topup("max", amount=Nano(MAX_NANO)))
    with pytest.raises(LedgerRefused) as refused:
        await ledger.post_topup(topup("more", amount=Nano(1)))
    assert refused.value.reason == "AmountOutOfRange"
    assert await balance(ledger) == MAX_NANO
    await ledger.post_topup(topup("back", kind="Adjustment", amount=Nano(-MAX_NANO)))
    assert await balance(ledger) == 0


async def test_an_adjustment_can_be_negative(ledger: Ledger) -> None:
    await ledger.record([terms()])
    posted = await ledger.post_topup(topup(kind="Adjustment", amount=Nano(-5)))
    assert posted.balance_after == -5


async def test_concurrent_topups_all_count_and_a_refused_one_fails_alone(ledger: Ledger) -> None:
    await ledger.record([terms()])
    orders = [topup(f"pay_{number % 40}") for number in range(120)]
    orders.append(topup("pay_0", kind="Adjustment", amount=Nano(3)))
    orders.append(topup(account=ObjectKey("no", "body")))
    results = await asyncio.gather(*map(ledger.post_topup, orders), return_exceptions=True)
    refusals = [result for result in results if isinstance(result, BaseException)]
    assert {type(refusal) for refusal in refusals} == {LedgerRefused}
    assert len(refusals) == 2
    assert await balance(ledger) == 40 * TEN


async def test_an_account_recorded_again_keeps_its_debt(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    await ledger.ingest([usage()])
    await ledger.record([terms(limit="5")])
    found = await ledger.account(ACME)
    assert found is not None
    assert (found.balance, found.credit_limit) == (-CALL_CHARGE, 5_000_000_000)
