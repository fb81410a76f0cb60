"""ledger: usage events a second into SQLite and PostgreSQL, each batch on the disk before it is answered.

The limit is a bare INSERT of the very rows that the ledger wrote, by one client, with as many commits: the
same tables and indexes, no foreign keys. Then the rate as the table grows, and the delay of a reader.
"""

import asyncio
import itertools
import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp

from farebox.domain.billing.money import Nano
from farebox.domain.keys import ObjectKey
from farebox.ledger.db.migrate import upgrade
from farebox.ledger.engine import Ledger
from farebox.meterapi.types import AccountRecord, Binding, PriceVersion, TokenPriceTier
from farebox.meterapi.usage import UsageEvent
from tests.ledger.databases import Databases, PostgresDatabases, SqliteDatabases
from tests.support.postgres import Postgres
from tests.support.stack import usage_event
from tests.tools.bench.ledger_rows import BareInserts, Ids, fill
from tests.tools.bench.report import Report, percentile
from tests.tools.bench.world import MODEL, World, open_world

BATCHES = {1: 2_000, 100: 40_000, 1000: 100_000}
"""Events for each size of a batch."""
CLIENTS = (1, 8)
ROUNDS = 5
"""The ledger and its limit take this number of turns, so that both meet the same moods of the machine."""
ROWS = 1_000_000
"""In the table that has grown; BENCH_LEDGER_ROWS=10000000 adds one of that size, which takes minutes."""
VERIFIED_ROWS = 1_100_000
"""A table that was filled is verified up to here: it takes a minute for each million."""
FEED_SAMPLES = 500
_SERVICE = ObjectKey("bench", "service")
_ACCOUNT = ObjectKey("bench", "account")
_JSON_BATCH = "application/cloudevents-batch+json"


async def run(scale: float) -> Report:
    """The whole benchmark."""
    report = Report("ledger", scale)
    sizes = [max(1000, round(ROWS * scale))]
    if more := os.environ.get("BENCH_LEDGER_ROWS"):
        sizes.append(int(more))
    with _stores() as stores:
        for store in stores:
            for (batch, events), clients in itertools.product(BATCHES.items(), CLIENTS):
                await _compare(
                    report, store, batch, _whole(events * scale / ROUNDS, batch * clients), clients
                )
            for rows in sizes:
                await _grow(report, store, rows, "rising")
            await _grow(report, store, sizes[0], "random")
            await _feed(report, store, max(20, round(FEED_SAMPLES * scale)))
    async with open_world() as world:
        await _make_service(world)
        for batch, events in BATCHES.items():
            rate = await _post(world, batch, _whole(events * scale / 4, batch))
            report.add(f"POST /v1/events, batches of {batch:,}", rate, "events/s")
    return report


@contextmanager
def _stores() -> Iterator[list[Databases]]:
    """SQLite, and a PostgreSQL as it is installed: all that it promises is on the disk."""
    with tempfile.TemporaryDirectory(prefix="farebox-bench-") as directory, Postgres.started() as server:
        yield [SqliteDatabases(Path(directory)), PostgresDatabases(server)]


def _whole(events: float, unit: int) -> int:
    return max(1, round(events / unit)) * unit


async def _compare(report: Report, store: Databases, batch: int, count: int, clients: int) -> None:
    """The ledger beside bare inserts of what it wrote, `ROUNDS` times `count` events."""
    spent = limit = 0.0
    with store.ledger() as database, store.empty() as empty:
        upgrade(empty.url)
        bare = BareInserts(database.url, empty.url, 1 if store.name == "sqlite" else clients)
        ledger = await Ledger.open(database.url)
        try:
            await _tell_ledger(ledger)
            for _ in range(ROUNDS):
                spent += await _ingest(ledger, batch, count, clients)
                limit += await asyncio.to_thread(bare.insert_new_rows, count // batch)
        finally:
            await ledger.close()
            bare.close()
        await asyncio.to_thread(database.check)
    rate, limit_rate = ROUNDS * count / spent, ROUNDS * count / limit
    what = f"{store.name}, batches of {batch:,}, {clients} client{'s' if clients > 1 else ''}"
    goal, met = "half of bare inserts", rate >= limit_rate / 2
    if store.name == "postgresql" and batch == 1000:
        goal, met = f"{goal}, 10,000 events/s", met and rate >= 10_000
    report.add(what, rate, "events/s", limit_rate, goal, met)


async def _ingest(ledger: Ledger, batch: int, count: int, clients: int, ids: Ids = "rising") -> float:
    """The seconds that this number of events takes; each client waits for its answer before it sends more."""
    batches = [[_event(ids) for _ in range(batch)] for _ in range(0, count, batch)]

    async def client(own: list[list[UsageEvent]]) -> None:
        for events in own:
            result = await ledger.ingest(events)
            assert (result.accepted, result.pending) == (batch, 0), result

    async def send() -> None:
        await asyncio.gather(*(client(batches[number::clients]) for number in range(clients)))

    return await _timed(send)


async def _grow(report: Report, store: Databases, rows: int, ids: Ids) -> None:
    """The rate in batches of 1,000 on a table with `rows` rows, in turns with that on an empty one."""
    spent = {"empty": 0.0, "full": 0.0}
    count = 10_000
    with store.ledger() as empty, store.ledger() as full:
        ledgers = {}
        for name, database in (("empty", empty), ("full", full)):
            ledgers[name] = await Ledger.open(database.url)
            await _tell_ledger(ledgers[name])
            await _ingest(ledgers[name], 1000, 1000, 1, ids)
        try:
            await asyncio.to_thread(fill, full.url, rows, ids)
            for _ in range(ROUNDS):
                for name, ledger in ledgers.items():
                    spent[name] += await _ingest(ledger, 1000, count, 1, ids)
        finally:
            for ledger in ledgers.values():
                await ledger.close()
        if rows <= VERIFIED_ROWS:
            await asyncio.to_thread(full.check)
    rate, limit = (ROUNDS * count / spent[name] for name in ("full", "empty"))
    what = f"{store.name}, batches of 1,000 on {rows:,} rows, {ids} ids; limit: on none"
    if ids == "random":
        report.add(what, rate, "events/s", limit)
    else:
        report.add(what, rate, "events/s", limit, "80 % of that", rate >= 0.8 * limit)


async def _feed(report: Report, store: Databases, samples: int) -> None:
    """From the call to a reader's page, with other usage on the way; on PostgreSQL through another meter."""
    with store.ledger() as database:
        writer = await Ledger.open(database.url)
        reader = await Ledger.open(database.url) if store.name == "postgresql" else writer
        try:
            await _tell_ledger(writer)
            seconds = await _latencies(writer, reader, samples)
        finally:
            await writer.close()
            await reader.close()
    p99 = percentile(seconds, 99) * 1000
    report.add(f"{store.name}, usage to a reader's page, p99", p99, "ms", None, "100 ms", p99 < 100)


async def _latencies(writer: Ledger, reader: Ledger, samples: int) -> list[float]:
    found: list[float] = []
    for _ in range(samples):
        head = await writer.head()
        waiting = asyncio.create_task(reader.changes(head, 10))
        await asyncio.sleep(0.005)
        started = time.monotonic()
        await writer.ingest([_event() for _ in range(100)])
        page = await waiting
        assert page.head > head
        found.append(time.monotonic() - started)
    return found


async def _tell_ledger(ledger: Ledger) -> None:
    since = datetime.now(UTC) - timedelta(days=1)
    tier = TokenPriceTier(None, Nano(500), Nano(50), Nano(1500))
    refused = await ledger.record(
        [
            AccountRecord(_ACCOUNT, "USD", Nano(0)),
            PriceVersion("model", "USD", (tier,), since),
            Binding(_SERVICE, _ACCOUNT, "model", since),
        ]
    )
    assert not refused, refused


def _event(ids: Ids = "rising") -> UsageEvent:
    """With a rising id, as the gateway gives it, or a random one, the worst for an index."""
    call, now = str(uuid.uuid4()), datetime.now(UTC)
    return UsageEvent(
        source="gateway-0/0198c0de4a3b",
        id=call if ids == "random" else f"{int(now.timestamp() * 1000):012x}-{call}",
        service=_SERVICE,
        time=now,
        input_tokens=1200,
        cached_input_tokens=800,
        output_tokens=300,
        model="model",
        api_key="key-1",
        request_id=call,
        status=200,
    )


async def _make_service(world: World) -> None:
    await world.namespace(_SERVICE.namespace)
    await world.account(_ACCOUNT.namespace, _ACCOUNT.name)
    await world.services(_SERVICE.namespace, _ACCOUNT.name, [_SERVICE.name], dedicated=False)
    await world.at_rest()


async def _post(world: World, batch: int, count: int) -> float:
    """Events a second through the meter's HTTP API, over one connection."""
    headers = {
        "Authorization": f"Bearer {await asyncio.to_thread(world.stack.usage_token)}",
        "Content-Type": _JSON_BATCH,
    }
    bodies = [json.dumps([_http_event() for _ in range(batch)]).encode() for _ in range(count // batch)]
    async with aiohttp.ClientSession(headers=headers) as session:

        async def send() -> None:
            for body in bodies:
                async with session.post(f"{world.stack.meter_url}/v1/events", data=body) as response:
                    answer = await response.json()
                    assert answer.get("accepted") == batch, answer

        return count / await _timed(send)


def _http_event() -> dict[str, Any]:
    event = usage_event(str(_SERVICE), MODEL, 1200, 300, 800)
    event["data"]["apiKey"] = "key-1"
    return event


async def _timed(action: Callable[[], Coroutine[Any, Any, None]]) -> float:
    started = time.monotonic()
    await action()
    return time.monotonic() - started
