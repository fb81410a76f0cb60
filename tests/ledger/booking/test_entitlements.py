"""Free quotas and reservations: what covers a call, and when a term is bought (B6, B9)."""

from dataclasses import replace
from datetime import timedelta

import pytest

from farebox.api import ReservationState
from farebox.domain.billing.money import Nano
from farebox.domain.billing.reservations import Buying
from farebox.domain.keys import ObjectKey
from farebox.ledger.engine import Ledger
from farebox.meterapi.types import (
    AccountRecord,
    Binding,
    FreeQuota,
    PriceVersion,
    Record,
)
from tests.ledger.databases import Database
from tests.ledger.support import (
    ACME,
    CALL_CHARGE,
    CHAT,
    MODEL,
    OFFER,
    QUOTA,
    START,
    TERM_PRICE,
    TIERS,
    Clock,
    balance,
    binding,
    model,
    opened,
    quota,
    reservation,
    reserved,
    terms,
    topup,
    usage,
)


async def test_b6_the_quota_is_used_first_and_the_excess_is_charged(ledger: Ledger) -> None:
    await ledger.record([terms(), binding(), model(free_quota=QUOTA)])
    assert (await quota(ledger)).total == 1_000
    # 120 tokens a call: eight are free, of the ninth 40 tokens of uncached input.
    await ledger.ingest([usage(str(number)) for number in range(8)])
    assert await balance(ledger) == 0
    assert (await quota(ledger)).used == 960
    await ledger.ingest([usage("crosses", cached_input_tokens=30)])
    assert (await quota(ledger)).used == 1_000
    assert await balance(ledger) == -(30 * 500 + 30 * 50 + 20 * 1_500)
    await ledger.ingest([usage("after")])
    assert await balance(ledger) == -(30 * 500 + 30 * 50 + 20 * 1_500) - CALL_CHARGE


async def test_b6_a_trial_is_never_charged_even_beyond_the_quota(ledger: Ledger) -> None:
    trial = Binding(CHAT, ACME, MODEL, START, trial=True)
    await ledger.record([terms(), trial, model(free_quota=FreeQuota(50, 90))])
    await ledger.ingest([usage("crosses")])
    assert await balance(ledger) == 0
    assert (await quota(ledger)).used == 50


async def test_b6_a_quota_is_void_after_its_expiry(ledger: Ledger, clock: Clock) -> None:
    await ledger.record([terms(), binding(), model(free_quota=QUOTA)])
    clock.advance(days=91)
    await ledger.ingest([usage("in time", time=START + timedelta(days=89)), usage("late", time=clock.now)])
    assert (await quota(ledger)).used == 120
    assert await balance(ledger) == -CALL_CHARGE


async def test_b6_an_account_gets_a_models_quota_once_and_all_its_services_share_it(
    ledger: Ledger, clock: Clock
) -> None:
    other = ObjectKey("team-b", "chat")
    await ledger.record([terms(), binding(), binding(other), model(free_quota=QUOTA)])
    await ledger.ingest([usage("1"), usage("2", service=other)])
    assert (await quota(ledger)).used == 240
    clock.advance(days=200)
    # Made again, priced again, offered again: no second quota.
    await ledger.record(
        [binding(ObjectKey("team-c", "new"), at=clock.now), model(free_quota=FreeQuota(9_999, 9))]
    )
    assert (await quota(ledger)).total == 1_000


async def test_b6_pending_usage_uses_the_quota_when_it_is_charged(ledger: Ledger) -> None:
    await ledger.ingest([usage()])
    await ledger.record([terms(), binding(), model(free_quota=QUOTA)])
    assert (await quota(ledger)).used == 120
    assert await balance(ledger) == 0


async def test_b6_pending_usage_uses_the_quota_in_order_of_arrival(ledger: Ledger) -> None:
    """The first event waits for its price, the second for its binding."""
    other = ObjectKey("team-b", "chat")
    await ledger.record([terms(), binding()])
    await ledger.ingest([usage("first"), usage("second", service=other, output_tokens=0)])
    await ledger.record([binding(other), model(free_quota=FreeQuota(120, 90))])
    assert await balance(ledger) == -100 * 500


async def test_b9_a_term_is_bought_at_creation_and_covers_its_minutes(ledger: Ledger) -> None:
    await ledger.record([terms(), binding(), model(reservation=OFFER)])
    await ledger.post_topup(topup(amount=Nano(TERM_PRICE)))
    await ledger.record([reserved()])
    bought = await reservation(ledger)
    assert (bought.state, bought.period_end) == (ReservationState.ACTIVE, START + timedelta(days=30))
    assert await balance(ledger) == 0
    half = {"input_tokens": 12_000, "cached_input_tokens": 4_000, "output_tokens": 600}
    await ledger.ingest([usage("1", **half)])
    assert await balance(ledger) == 0
    # The second of that minute finds 8,000 in and 400 out: its uncached input and most of its output.
    await ledger.ingest([usage("2", **half)])
    assert await balance(ledger) == -(4_000 * 80 + 200 * 2_400)
    await ledger.ingest([usage("3", **half, time=START + timedelta(minutes=1))])
    assert await balance(ledger) == -(4_000 * 80 + 200 * 2_400)


async def test_b9_reservations_of_a_recreated_service_add_up(ledger: Ledger) -> None:
    """Each was paid (docs/decisions/108)."""
    await ledger.record([terms(limit="100000"), binding(), model(reservation=OFFER)])
    await ledger.record([reserved(uid="first"), reserved(uid="second", input_tpm=10_000)])
    bought = await balance(ledger)
    await ledger.ingest([usage(input_tokens=31_000, output_tokens=2_100)])
    assert await balance(ledger) - bought == -(1_000 * 800 + 100 * 2_400)


async def test_b9_a_reservation_on_one_model_covers_nothing_on_another(ledger: Ledger) -> None:
    """Nor usage of another account: a service can be recreated under its name (docs/decisions/108)."""
    await ledger.record([terms(limit="100000"), binding(), model(reservation=OFFER), reserved()])
    bought = await balance(ledger)
    await ledger.record([binding(model="dear", at=START + timedelta(days=1))])
    await ledger.record([PriceVersion("dear", "USD", TIERS, START)])
    await ledger.ingest([usage(time=START + timedelta(minutes=1)), usage("2", model="dear")])
    assert await balance(ledger) - bought == -CALL_CHARGE
    other = ObjectKey("billing", "other")
    await ledger.record([terms(other), binding(account=other, at=START + timedelta(minutes=2))])
    await ledger.ingest([usage("3", time=START + timedelta(minutes=3))])
    assert await balance(ledger, other) == -CALL_CHARGE


async def test_b9_a_term_that_cannot_be_paid_is_bought_after_a_top_up_once(
    ledger: Ledger, clock: Clock
) -> None:
    await ledger.record([terms(), binding(), model(reservation=OFFER), reserved()])
    unpaid = await reservation(ledger)
    assert (unpaid.state, unpaid.reason) == (ReservationState.UNPAID, "InsufficientBalance")
    await ledger.post_topup(topup("small", "1"))
    assert (await reservation(ledger)).state is ReservationState.UNPAID
    clock.advance(days=3)
    for _ in range(2):
        await ledger.post_topup(topup("large", Nano(TERM_PRICE)))
        await ledger.process_due_renewals()
    bought = await reservation(ledger)
    assert (bought.state, bought.period_start) == (ReservationState.ACTIVE, clock.now)
    assert await balance(ledger) == 1_000_000_000


@pytest.mark.parametrize("buying", list(Buying))
async def test_b9_through_400_days(ledger: Ledger, clock: Clock, buying: Buying) -> None:
    await ledger.record([terms(), binding(), model(reservation=OFFER)])
    await ledger.post_topup(topup(amount=Nano(100 * TERM_PRICE)))
    await ledger.record([reserved(buying)])
    for _ in range(400 * 4):
        clock.advance(hours=6)
        await ledger.process_due_renewals()
    # Bought at days 0, 29, 59, ... 389: the term in force at day 400, and the ones before it.
    bought = {Buying.RENEWING: 14, Buying.ONCE: 1, Buying.NOTHING: 0}[buying]
    assert await balance(ledger) == (100 - bought) * TERM_PRICE
    state = {
        Buying.RENEWING: ReservationState.ACTIVE,
        Buying.ONCE: ReservationState.EXPIRED,
        Buying.NOTHING: ReservationState.PENDING,
    }[buying]
    assert (await reservation(ledger)).state is state


async def test_b9_renewal_is_a_day_ahead_and_its_failure_is_reported_before_the_end(
    ledger: Ledger, clock: Clock
) -> None:
    await ledger.record([terms(), binding(), model(reservation=OFFER)])
    await ledger.post_topup(topup(amount=Nano(TERM_PRICE)))
    await ledger.record([reserved(Buying.RENEWING)])
    clock.advance(days=29)
    await ledger.process_due_renewals()
    failing = await reservation(ledger)
    assert (failing.state, failing.reason) == (ReservationState.ACTIVE, "InsufficientBalance")
    await ledger.post_topup(topup("pay_2", Nano(TERM_PRICE)))
    renewed = await reservation(ledger)
    assert (renewed.reason, renewed.period_end) == ("", START + timedelta(days=30))
    clock.advance(days=1)
    await ledger.process_due_renewals()
    assert (await reservation(ledger)).period_end == START + timedelta(days=60)
    clock.advance(days=31)
    await ledger.process_due_renewals()
    assert (await reservation(ledger)).state is ReservationState.UNPAID


async def test_b9_a_term_costs_the_price_in_force_at_its_purchase(ledger: Ledger, clock: Clock) -> None:
    dearer = replace(OFFER, input_unit_price_per_day=Nano(10 * OFFER.input_unit_price_per_day))
    await ledger.record([terms(limit="100000"), binding(), model(reservation=OFFER)])
    tomorrow = replace(model(reservation=dearer), effective_at=START + timedelta(days=1))
    await ledger.record([tomorrow, reserved()])
    assert await balance(ledger) == -TERM_PRICE
    clock.advance(days=1)
    await ledger.record([reserved(uid="uid-2")])
    assert await balance(ledger) < -10 * TERM_PRICE / 2


async def test_b9_a_term_that_the_model_does_not_offer_is_not_bought(ledger: Ledger) -> None:
    await ledger.record([terms(limit="100000"), binding(), model(reservation=OFFER)])
    for number, changes in enumerate(({"days": 7}, {"input_tpm": 15_000}, {"output_tpm": 1})):
        await ledger.record([reserved(uid=f"uid-{number}", **changes)])
    for found in (await ledger.changes(0, 0)).reservations:
        assert (found.state, found.reason) == (ReservationState.UNPAID, "NotOffered")
    assert await balance(ledger) == 0


async def test_quotas_and_reservations_are_found_by_another_process(database: Database, clock: Clock) -> None:
    facts: list[Record] = [
        AccountRecord(ACME, "USD", Nano(10 * TERM_PRICE)),
        binding(),
        model(reservation=OFFER, free_quota=QUOTA),
        reserved(),
    ]
    async with opened(database, clock) as first, opened(database, clock) as second:
        await first.ingest([usage("0", time=START - timedelta(days=1))])
        await second.record(facts)
        await first.ingest([usage("1")])
        await second.ingest([usage("2", input_tokens=21_000)])
        await first.ingest([usage("3", output_tokens=1_200)])
        seen = [await ledger.changes(0, 0) for ledger in (first, second)]
        assert seen[0] == seen[1]
        # Before the term 120 tokens; beyond it 1,000 and 120 in, 240 out of what is left of the minute.
        assert seen[0].quotas[0].used == 1_000
    database.check()
