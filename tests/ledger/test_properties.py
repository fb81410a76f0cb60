"""For any batches, repeats and orders: every event is charged once, and the balance is the plain sum."""

import asyncio
import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farebox.domain.billing.pricing import charge
from farebox.domain.keys import ObjectKey
from farebox.ledger.engine import Ledger
from farebox.meterapi.types import Record, TopUpOrder
from farebox.meterapi.usage import UsageEvent
from tests.ledger.databases import Database, Databases
from tests.ledger.support import TIERS, Clock, balance, binding, price, terms, topup, usage

EXAMPLES = settings(max_examples=15 * int(os.environ.get("FAREBOX_TEST_EXAMPLES", "1")))
ACCOUNTS = [ObjectKey("billing", name) for name in ("a", "b")]
SERVICES = {ObjectKey("team", name): ACCOUNTS[number % 2] for number, name in enumerate("wxyz")}
MODELS = ("m1", "m2")
RECORDS: list[Record] = [
    *(terms(account) for account in ACCOUNTS),
    *(binding(service, account, MODELS[0]) for service, account in SERVICES.items()),
    price(MODELS[0]),
]

events = st.builds(
    lambda name, service, tokens: usage(
        str(name),
        service=service,
        input_tokens=tokens[0],
        cached_input_tokens=min(tokens[1], tokens[0]),
        output_tokens=tokens[2],
    ),
    st.integers(0, 12),
    st.sampled_from(list(SERVICES)),
    st.tuples(st.integers(0, 3_000), st.integers(0, 3_000), st.integers(0, 500)),
)
orders = st.builds(
    lambda number, account: topup(f"pay_{number}", account=account),
    st.integers(0, 4),
    st.sampled_from(ACCOUNTS),
)
work = st.one_of(
    st.lists(events, max_size=8),
    orders,
    st.lists(st.sampled_from(RECORDS), min_size=1, max_size=3),
)


@settings(EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(work, max_size=25), st.booleans())
def test_any_order_of_work_ends_in_the_same_books(
    databases: Databases, script: list[list[UsageEvent] | TopUpOrder | list[Record]], together: bool
) -> None:
    with databases.ledger() as database:
        asyncio.run(play(database, script, together))
        database.check()


async def play(
    database: Database, script: list[list[UsageEvent] | TopUpOrder | list[Record]], together: bool
) -> None:
    """Do the work in its order or at once, then record everything, and compare with the plain sums."""
    ledger = await Ledger.open(database.url, clock=Clock())
    tasks = [do(ledger, item) for item in script]
    if together:
        await asyncio.gather(*tasks, return_exceptions=True)
    else:
        for task in tasks:
            await asyncio.gather(task, return_exceptions=True)
    await ledger.record(RECORDS)
    paid = {item for item in script if isinstance(item, TopUpOrder)}
    for order in paid:
        await ledger.post_topup(order)
    if not together:
        first: dict[str, UsageEvent] = {}
        for item in script:
            if isinstance(item, list):
                for event in item:
                    if isinstance(event, UsageEvent):
                        first.setdefault(event.id, event)
        for account in ACCOUNTS:
            charged = sum(
                charge(TIERS, event.tokens) for event in first.values() if SERVICES[event.service] == account
            )
            credited = sum(order.amount for order in paid if order.account == account)
            assert await balance(ledger, account) == credited - charged
    assert await ledger.pending_count() == 0
    await ledger.close()


async def do(ledger: Ledger, item: list[UsageEvent] | TopUpOrder | list[Record]) -> None:
    """One piece of work; a top-up before its account is refused, and is posted again at the end."""
    if isinstance(item, TopUpOrder):
        await ledger.post_topup(item)
    elif item and isinstance(item[0], UsageEvent):
        await ledger.ingest([event for event in item if isinstance(event, UsageEvent)])
    else:
        await ledger.record([record for record in item if not isinstance(record, UsageEvent)])
