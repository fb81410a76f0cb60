"""The same events again, in another order: the books do not change, and other books agree (B12, B19).

`make test` replays 12,000 events, `make test-thorough` 60,000. FAREBOX_REPLAY=1000000 replays a million in
about five minutes. `make bench` measures the ledger's rates; this test proves its sums.
"""

import os
import random
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import lru_cache
from itertools import islice

import pytest

from farebox.domain.keys import ObjectKey
from farebox.ledger.engine import Ledger
from farebox.meterapi.types import Record
from farebox.meterapi.usage import UsageEvent
from tests.ledger.databases import Databases
from tests.ledger.support import START, Clock, binding, flat, opened, price, terms

EVENTS = int(os.environ.get("FAREBOX_REPLAY", "12000"))
ACCOUNTS = [ObjectKey("billing", name) for name in ("a", "b", "c")]
SERVICES = [ObjectKey("team", f"service-{number}") for number in range(7)]
MODELS = ("bge", "qwen3")
HOUR = timedelta(hours=1)


def records() -> list[Record]:
    """Three accounts, seven services on two models, each with two versions of its prices."""
    return [
        *(terms(account) for account in ACCOUNTS),
        *(
            binding(service, ACCOUNTS[place % 3], MODELS[place % 2], START)
            for place, service in enumerate(SERVICES)
        ),
        *(price(model) for model in MODELS),
        *(price(model, flat(3), START + HOUR) for model in MODELS),
    ]


@lru_cache(100_000)
def event(number: int) -> UsageEvent:
    """The event of a number, always the same."""
    drawn = random.Random(number)
    tokens = drawn.randrange(3_000)
    return UsageEvent(
        source=f"gateway-{number % 4}",
        id=str(number),
        service=drawn.choice(SERVICES),
        time=START + drawn.random() * 2 * HOUR,
        input_tokens=tokens,
        output_tokens=drawn.randrange(500),
        cached_input_tokens=drawn.randrange(tokens + 1),
    )


def batches(order: Sequence[int], sizes: random.Random) -> Iterator[list[UsageEvent]]:
    """The events of these numbers, a thousand to ten thousand at a time."""
    rest = iter(order)
    while batch := list(islice(rest, sizes.randint(1_000, 10_000))):
        yield [event(number) for number in batch]


async def replay(ledger: Ledger, seed: int) -> tuple[int, int]:
    """All events in an order of their own; how many were new, and how many known."""
    drawn = random.Random(seed)
    order = list(range(EVENTS))
    drawn.shuffle(order)
    accepted = duplicate = 0
    for batch in batches(order, drawn):
        result = await ledger.ingest(batch)
        assert (result.pending, result.rejected) == (0, ())
        accepted, duplicate = accepted + result.accepted, duplicate + result.duplicate
    return accepted, duplicate


async def balances(ledger: Ledger) -> dict[ObjectKey, int]:
    """Of all accounts."""
    return {item.account: item.balance for item in (await ledger.changes(0, 0)).accounts}


@pytest.mark.timeout(3600)
async def test_b12_events_replayed_in_any_order_give_the_same_balances(databases: Databases) -> None:
    clock = Clock(START + 2 * HOUR)
    with databases.ledger() as one, databases.ledger() as other:
        async with opened(one, clock) as ledger:
            await ledger.record(records())
            assert await replay(ledger, seed=1) == (EVENTS, 0)
            once = await balances(ledger)
            head = await ledger.head()
            assert await replay(ledger, seed=2) == (0, EVENTS)
            assert (await balances(ledger), await ledger.head()) == (once, head)
        async with opened(other, clock) as ledger:
            await ledger.record(records())
            assert await replay(ledger, seed=3) == (EVENTS, 0)
            assert await balances(ledger) == once
        assert all(balance < 0 for balance in once.values())
        one.check()
        other.check()
