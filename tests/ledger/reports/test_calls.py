"""B32: every stored call is listed and can be looked up, on both databases."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from farebox.domain.billing.coverage import Coverage
from farebox.domain.billing.money import Nano
from farebox.domain.billing.pricing import charge
from farebox.domain.keys import ObjectKey
from farebox.ledger.booking.request_index import SEGMENT_EVENTS
from farebox.ledger.db import tables
from farebox.ledger.engine import Ledger
from farebox.ledger.reports.calls import read_call, read_calls
from farebox.meterapi.calls import Call, CallQuery
from farebox.meterapi.types import Binding, PriceVersion, TokenPriceTier
from tests.ledger.databases import Database
from tests.ledger.support import (
    ACME,
    CHAT,
    FACTS,
    MODEL,
    OFFER,
    QUOTA,
    START,
    TIERS,
    Clock,
    reserved,
    terms,
    usage,
)

OTHER = ObjectKey("team-b", "chat")
DAY = timedelta(days=1)


async def listed(
    ledger: Ledger, owner: ObjectKey | str = ACME, size: int = 100, **filters: Any
) -> list[Call]:
    """All calls of two days, read in pages of this size."""
    query = CallQuery(owner, START - DAY, START + DAY, **filters)
    found: list[Call] = []
    after = None
    while True:
        page = await ledger.report(lambda connection, after=after: read_calls(connection, query, size, after))
        assert len(page.calls) <= size
        found += page.calls
        after = page.next
        if after is None:
            return found


async def call(ledger: Ledger, request_id: str, owner: ObjectKey | str = ACME) -> Call | None:
    """The look-up."""
    return await ledger.report(lambda connection: read_call(connection, owner, request_id))


async def segments(ledger: Ledger) -> int:
    """The number of segments in the index of request ids."""
    count = select(func.count()).select_from(tables.request_segments)
    return await ledger.report(lambda connection: connection.execute(count).scalar_one())


async def test_a_call_has_what_was_metered_and_what_it_cost(ledger: Ledger) -> None:
    tiers = (replace(TIERS[0], cache_write=Nano(625)), TIERS[1])
    await ledger.record([*FACTS[:2], PriceVersion(MODEL, "USD", tiers, START)])
    event = usage(
        "e-1",
        cached_input_tokens=40,
        cache_write_input_tokens=10,
        api_key="ci",
        request_id="r-1",
        status=200,
        estimated=True,
        duration_ms=1840,
        first_byte_ms=210,
    )
    await ledger.ingest([event])
    found = await call(ledger, "r-1")
    assert found is not None
    assert (found.source, found.id, found.service, found.time) == ("gateway-0", "e-1", CHAT, START)
    assert (found.model, found.api_key, found.status, found.account) == (MODEL, "ci", 200, ACME)
    assert (found.estimated, found.duration_ms, found.first_byte_ms) == (True, 1840, 210)
    assert (found.charge, found.currency) == (50 * 500 + 40 * 50 + 10 * 625 + 20 * 1500, "USD")
    assert found.price is not None
    assert (found.price.version, found.price.effective_at, found.price.up_to_input_tokens) == (
        1,
        START,
        1_000,
    )
    price = found.price
    assert (price.input, price.cached_input, price.cache_write, price.output) == (500, 50, 625, 1500)
    assert (found.pending_reason, found.waiting_for) == (None, None)
    assert await listed(ledger) == [found]


async def test_a_call_says_what_covered_it_and_its_charge_follows(ledger: Ledger) -> None:
    offers = PriceVersion(MODEL, "USD", TIERS, START, reservation=OFFER, free_quota=QUOTA)
    await ledger.record([terms(limit="1000000"), FACTS[1], offers, reserved()])
    event = usage("1", request_id="r", input_tokens=21_000, cached_input_tokens=600, output_tokens=1_100)
    await ledger.ingest([event])
    found = await call(ledger, "r")
    assert found is not None
    coverage = Coverage(
        found.reservation_input_tokens, found.reservation_output_tokens, found.free_quota_tokens
    )
    assert coverage == (20_000, 1_000, 1_000)
    assert found.price is not None
    tier = TokenPriceTier(None, found.price.input, found.price.cached_input, found.price.output)
    assert found.charge == charge([tier], event.tokens, coverage) == 100 * 2_400


async def test_a_pending_call_says_what_it_waits_for(ledger: Ledger) -> None:
    await ledger.record(FACTS)
    unknown = ObjectKey("team-a", "new")
    await ledger.ingest([usage("1", model="gone", request_id="r-1")])
    await ledger.ingest([usage("2", service=unknown, request_id="r-2")])
    first, second = await call(ledger, "r-1"), await call(ledger, "r-2", "team-a")
    assert first is not None
    assert second is not None
    assert (first.pending_reason, first.waiting_for, first.charge) == ("ModelNotBound", str(CHAT), None)
    assert (second.pending_reason, second.waiting_for) == ("BindingNotFound", str(unknown))
    assert (second.account, second.price, second.currency) == (None, None, None)
    assert {item.request_id for item in await listed(ledger)} == {"r-1"}
    assert {item.request_id for item in await listed(ledger, "team-a")} == {"r-1", "r-2"}


async def test_calls_are_listed_newest_first_over_any_pages(ledger: Ledger) -> None:
    await ledger.record([*FACTS, Binding(OTHER, ACME, MODEL, START)])
    ages = [0, 0, 1, 59, 60, 61, 3600, 3600, 80_000]
    events = [
        usage(str(n), service=(CHAT, OTHER)[n % 2], time=START - timedelta(seconds=age), request_id=f"r-{n}")
        for n, age in enumerate(ages)
    ]
    await ledger.ingest(events[::2])
    await ledger.ingest(events[1::2])
    whole = await listed(ledger)
    assert [item.time for item in whole] == sorted((event.time for event in events), reverse=True)
    for size in (1, 2, 5):
        assert await listed(ledger, size=size) == whole
    assert {item.service for item in await listed(ledger, "team-b", 2)} == {OTHER}
    assert [item.id for item in await listed(ledger, "team-a", 3)] == ["0", "2", "4", "6", "8"]


@pytest.mark.parametrize(
    ("filters", "seen"),
    [
        ({}, "123"),
        ({"services": frozenset({CHAT})}, "12"),
        ({"services": frozenset({CHAT, OTHER})}, "123"),
        ({"api_key": "ci"}, "2"),
        ({"status": 499}, "3"),
        ({"estimated": True}, "3"),
        ({"estimated": False}, "12"),
        ({"model": MODEL}, "123"),
        ({"model": "other"}, ""),
        ({"estimated": True, "status": 200}, ""),
    ],
)
async def test_filters_select_what_they_name(ledger: Ledger, filters: dict[str, Any], seen: str) -> None:
    await ledger.record([*FACTS, Binding(OTHER, ACME, MODEL, START)])
    await ledger.ingest(
        [
            usage("1", status=200),
            usage("2", api_key="ci", status=200),
            usage("3", service=OTHER, status=499, estimated=True),
        ]
    )
    assert "".join(sorted(item.id for item in await listed(ledger, **filters))) == seen


async def test_a_look_up_finds_a_call_of_any_age_and_of_its_owner_alone(ledger: Ledger, clock: Clock) -> None:
    await ledger.record(FACTS)
    ages = (0, 1, 3_600, 86_400 * 40, 86_400 * 900)
    for number, age in enumerate(ages):
        await ledger.ingest(
            [usage(str(number), request_id=f"r-{number}", time=START - timedelta(seconds=age))]
        )
    for number in range(len(ages)):
        for owner in (ACME, "team-a"):
            found = await call(ledger, f"r-{number}", owner)
            assert found is not None
            assert found.id == str(number)
        assert await call(ledger, f"r-{number}", "team-b") is None
        assert await call(ledger, f"r-{number}", ObjectKey("billing", "other")) is None
    assert await call(ledger, "r-9") is None
    assert await call(ledger, "") is None


async def test_an_empty_ledger_has_no_calls(ledger: Ledger) -> None:
    assert await call(ledger, "r") is None
    assert await listed(ledger) == []


async def test_a_look_up_finds_calls_in_segments_and_after_them(ledger: Ledger) -> None:
    """A meter indexes request ids a segment at a time; here a segment has three events."""
    await ledger.record(FACTS)
    for number in range(8):
        name = None if number == 4 else f"r-{number}"
        await ledger.ingest([usage(str(number), request_id=name)])
        await ledger.index_requests(3)
        assert await segments(ledger) == (number + 1) // 3
        for earlier in {*range(number + 1)} - {4}:
            found = await call(ledger, f"r-{earlier}")
            assert found is not None
            assert found.id == str(earlier)
    assert await call(ledger, "r-4") is None


async def test_a_running_meter_indexes_requests_by_itself(database: Database) -> None:
    ledger = await Ledger.open(database.url, clock=Clock(), advance_seconds=0.01)
    try:
        await ledger.record(FACTS)
        for start in range(0, SEGMENT_EVENTS, 5_000):
            await ledger.ingest([usage(f"{n:06d}", request_id=f"r-{n}") for n in range(start, start + 5_000)])

        async with asyncio.timeout(60):
            while await segments(ledger) == 0:  # noqa: ASYNC110 - only the database tells
                await asyncio.sleep(0.01)
        found = await call(ledger, "r-7")
        assert found is not None
        assert await segments(ledger) == 1
    finally:
        await ledger.close()
    database.check()
