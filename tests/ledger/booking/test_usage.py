"""B12: usage is charged exactly once, whatever is repeated, reordered or late."""

from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from farebox.clock import from_micros
from farebox.domain.billing.money import MAX_NANO, Nano
from farebox.domain.keys import ObjectKey
from farebox.ledger.engine import Ledger
from farebox.ledger.reports.usage import read_usage
from farebox.meterapi.reports import UsageQuery
from farebox.meterapi.types import Record, TokenPriceTier
from farebox.meterapi.usage import IngestResult
from tests.ledger.databases import Database
from tests.ledger.support import (
    ACME,
    CALL_CHARGE,
    CHAT,
    FACTS,
    MODEL,
    START,
    Clock,
    balance,
    binding,
    flat,
    opened,
    price,
    terms,
    topup,
    usage,
)

HOUR = timedelta(hours=1)


async def test_a_call_is_charged_at_the_price_of_its_tier(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    result = await ledger.ingest(
        [usage("small"), usage("large", input_tokens=2_000, cached_input_tokens=500, output_tokens=10)]
    )
    head = await ledger.head()
    assert result == IngestResult(accepted=2, duplicate=0, pending=0, rejected=(), sequence=head)
    assert await balance(ledger) == -(CALL_CHARGE + 1_500 * 800 + 500 * 80 + 10 * 2_400)


async def test_a_repeated_event_is_charged_once(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    twice = usage()
    assert (await ledger.ingest([twice, twice, usage()])).duplicate == 2
    assert (await ledger.ingest([usage(), usage("2")])).accepted == 1
    assert await balance(ledger) == -2 * CALL_CHARGE


async def test_the_same_id_of_another_source_is_another_event(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    result = await ledger.ingest([usage(), usage(source="gateway-1")])
    assert (result.accepted, result.duplicate) == (2, 0)


async def test_source_and_id_are_distinguished(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    for source, name in (("a:b", "c"), ("a", "b:c"), ("a:", "b:c"), ("", "a:b:c")):
        result = await ledger.ingest([usage(name, source=source)])
        assert (result.accepted, result.pending) == (1, 0)


@pytest.mark.parametrize("first_stored", [True, False])
async def test_a_repetition_with_another_payload_changes_nothing_and_is_logged(
    ledger: Ledger, first_stored: bool
) -> None:
    await ledger.record(FACTS)
    with capture_logs() as logs:
        if first_stored:
            await ledger.ingest([usage()])
            result = await ledger.ingest([usage(output_tokens=999)])
        else:
            result = await ledger.ingest([usage(), usage(output_tokens=999)])
    assert result.duplicate == 1
    assert await balance(ledger) == -CALL_CHARGE
    assert [log["id"] for log in logs if log["event"] == "usage.payload_differs"] == ["1"]


async def test_a_plain_repetition_is_not_logged(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    with capture_logs() as logs:
        await ledger.ingest([usage(), usage()])
        await ledger.ingest([usage()])
    assert logs == []


async def test_an_event_without_tokens_is_accepted_and_costs_nothing(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    result = await ledger.ingest([usage(input_tokens=0, output_tokens=0)])
    assert (result.accepted, result.pending) == (1, 0)
    assert await balance(ledger) == 0


async def test_one_batch_of_an_account_and_model_is_one_transaction(ledger: Ledger) -> None:
    other = ObjectKey("team-b", "search")
    await ledger.record([*FACTS, binding(other, model="bge"), price("bge", flat(3))])
    before = await ledger.head()
    await ledger.ingest([usage(str(number), service=CHAT) for number in range(50)])
    assert await ledger.head() == before + 1
    await ledger.ingest([usage("a"), usage("b", service=other), usage("c")])
    assert await ledger.head() == before + 3


async def test_late_usage_after_a_move_goes_to_the_account_and_price_of_its_time(
    ledger: Ledger, clock: Clock
) -> None:
    later = ObjectKey("billing", "later")
    await ledger.record([*FACTS, terms(later), price(tiers=flat(7), at=START + HOUR)])
    await ledger.record([binding(account=later, at=START + 2 * HOUR)])
    clock.advance(hours=3)
    await ledger.ingest(
        [
            usage("moved", time=START + 2 * HOUR),
            usage("old", time=START + HOUR - timedelta(microseconds=1)),
            usage("dear", time=START + HOUR),
        ]
    )
    assert await balance(ledger) == -(CALL_CHARGE + 120 * 7)
    assert await balance(ledger, later) == -120 * 7


async def test_a_price_edit_never_changes_charged_usage(
    ledger: Ledger, database: Database, clock: Clock
) -> None:
    """Also when its time is in the past: it applies to usage that is charged later (B12)."""
    await ledger.record(FACTS)
    clock.advance(hours=1)
    await ledger.ingest([usage("1", time=START + HOUR / 2)])
    await ledger.record([price(tiers=flat(7), at=START + HOUR / 4)])
    assert await balance(ledger) == -CALL_CHARGE
    assert (await ledger.ingest([usage("1", time=START + HOUR / 2)])).duplicate == 1
    await ledger.ingest([usage("late", time=START + HOUR / 2), usage("older", time=START)])
    assert await balance(ledger) == -(CALL_CHARGE + 120 * 7 + CALL_CHARGE)
    database.check()


async def test_usage_before_the_first_record_uses_the_first_record(ledger: Ledger) -> None:
    await ledger.record([*FACTS, price(tiers=flat(7), at=START + HOUR)])
    await ledger.ingest([usage(time=START - HOUR)])
    assert await balance(ledger) == -CALL_CHARGE


async def test_an_event_from_the_future_is_rejected_with_its_index(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    soon, late = START + timedelta(minutes=5), START + timedelta(minutes=5, microseconds=1)
    result = await ledger.ingest([usage("soon", time=soon), usage("late", time=late)])
    assert result.accepted == 1
    (rejection,) = result.rejected
    assert (rejection.index, rejection.id, rejection.reason) == (1, "late", "TimeInFuture")


async def test_usage_before_1970_is_rejected(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    first = from_micros(0)
    result = await ledger.ingest(
        [usage("never", time=first - timedelta(microseconds=1)), usage("oldest", time=first)]
    )
    assert [(item.id, item.reason) for item in result.rejected] == [("never", "InvalidUsage")]
    page = await ledger.report(
        lambda connection: read_usage(connection, UsageQuery(ACME, first, first + HOUR), 10)
    )
    assert [row.charge for row in page.rows] == [CALL_CHARGE]
    assert await balance(ledger) == -CALL_CHARGE


async def test_impossible_usage_is_rejected_and_the_rest_counts(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    result = await ledger.ingest([usage("bad", cached_input_tokens=101), usage("good")])
    assert [(item.index, item.reason) for item in result.rejected] == [(0, "InvalidUsage")]
    assert await balance(ledger) == -CALL_CHARGE


@pytest.mark.parametrize(
    ("known", "missing", "reason", "waiting_for"),
    [
        ([terms(), price()], binding(), "BindingNotFound", str(CHAT)),
        ([terms(), binding()], price(), "PriceNotFound", MODEL),
        ([binding(), price()], terms(), "AccountNotFound", str(ACME)),
        (
            [terms(), price(), binding(model="other"), price("other")],
            binding(at=START + HOUR),
            "ModelNotBound",
            str(CHAT),
        ),
        (
            [terms(currency="EUR"), price(), binding()],
            price(currency="EUR", at=START - HOUR),
            "CurrencyMismatch",
            MODEL,
        ),
    ],
)
async def test_a_pending_event_is_charged_when_the_missing_record_arrives(
    ledger: Ledger, known: list[Record], missing: Record, reason: str, waiting_for: str
) -> None:
    await ledger.record(known)
    result = await ledger.ingest([usage(model=MODEL, time=START - HOUR / 2)])
    assert (result.accepted, result.pending) == (1, 1)
    (waiting,) = await ledger.pending()
    assert (waiting.reason, waiting.waiting_for) == (reason, waiting_for)
    assert waiting.event == usage(model=MODEL, time=START - HOUR / 2)
    assert await ledger.pending_count() == 1

    assert await ledger.record([missing]) == []
    assert await ledger.pending_count() == 0
    assert await balance(ledger) == -CALL_CHARGE
    assert (await ledger.ingest([usage(model=MODEL, time=START - HOUR / 2)])).duplicate == 1
    assert await balance(ledger) == -CALL_CHARGE


async def test_a_pending_event_names_what_it_waits_for(ledger: Ledger) -> None:
    await ledger.ingest([usage()])
    reasons = []
    for record in (binding(), terms(), price()):
        (waiting,) = await ledger.pending()
        reasons.append(waiting.reason)
        await ledger.record([record])
    assert reasons == ["BindingNotFound", "AccountNotFound", "PriceNotFound"]
    assert await ledger.pending_count() == 0


async def test_pending_events_are_listed_page_by_page(ledger: Ledger) -> None:
    await ledger.ingest([usage(str(number)) for number in range(5)])
    first = await ledger.pending(limit=3)
    rest = await ledger.pending(after=first[-1].cursor, limit=3)
    assert [item.event.id for item in (*first, *rest)] == ["0", "1", "2", "3", "4"]


async def test_many_pending_events_are_charged_together(ledger: Ledger) -> None:
    count = 12_000
    await ledger.ingest([usage(str(number)) for number in range(count)])
    assert await ledger.pending_count() == count
    await ledger.record(FACTS)
    assert await ledger.pending_count() == 0
    assert await balance(ledger) == -count * CALL_CHARGE


async def test_an_event_with_a_model_uses_the_binding_of_that_model(ledger: Ledger, clock: Clock) -> None:
    await ledger.record([*FACTS, binding(model="other", at=START + HOUR), price("other", flat(7))])
    clock.advance(hours=2)
    await ledger.ingest([usage("named", time=START + HOUR, model=MODEL), usage("plain", time=START + HOUR)])
    assert await balance(ledger) == -(CALL_CHARGE + 120 * 7)


async def test_an_event_that_would_overflow_the_balance_stays_pending(ledger: Ledger) -> None:
    dearest = (TokenPriceTier(None, Nano(999_999_999), Nano(0), Nano(999_999_999)),)
    await ledger.record([terms(), binding(), price(tiers=dearest)])
    huge = {"input_tokens": 1_000_000_000, "output_tokens": 1_000_000_000}
    result = await ledger.ingest([usage(str(number), **huge) for number in range(6)])
    assert result.pending == 2
    assert {item.reason for item in await ledger.pending()} == {"AmountOutOfRange"}
    low = await balance(ledger)
    assert -MAX_NANO <= low < -MAX_NANO // 2
    await ledger.post_topup(topup(amount="4000000000"))
    assert await ledger.pending_count() == 0


async def test_charged_events_are_known_after_a_restart(database: Database) -> None:
    async with opened(database) as ledger:
        await ledger.record(FACTS)
        await ledger.ingest([usage()])
    async with opened(database) as ledger:
        assert (await ledger.ingest([usage(), usage("2")])).duplicate == 1
        assert await balance(ledger) == -2 * CALL_CHARGE
    database.check()


async def test_two_processes_see_each_others_records(database: Database, ledger: Ledger) -> None:
    async with opened(database) as other:
        await ledger.record([terms()])
        await other.record([price(), binding()])
        assert (await ledger.ingest([usage("1")])).pending == 0
        assert (await other.ingest([usage("1"), usage("2")])).duplicate == 1
        await ledger.record([price(tiers=flat(7), at=START + timedelta(minutes=1))])
        await other.ingest([usage("3", time=START + timedelta(minutes=2))])
        assert await balance(ledger) == -(2 * CALL_CHARGE + 7 * 120)


async def test_an_empty_batch_is_accepted(ledger: Ledger) -> None:
    assert await ledger.ingest([]) == IngestResult(0, 0, 0, ())
