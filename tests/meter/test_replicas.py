"""Several meters on one PostgreSQL server: nothing is charged twice or lost, also over a restart."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from farebox.errors import LedgerUnavailable
from farebox.meterapi.client import MeterClient
from tests.ledger.databases import Database
from tests.ledger.support import CALL_CHARGE, FACTS, balance, opened, topup
from tests.meter.support import OPERATOR, Api, cloud_event
from tests.meter.test_kill import TEN, MeterProcess
from tests.support.postgres import Postgres

BATCHES, BATCH, TOPUPS, CUTS = 12, 20, 8, 4


@pytest.fixture
async def replicas(on_postgresql: Database, tmp_path: Path) -> AsyncIterator[list[MeterProcess]]:
    """Three meter processes on one database."""
    meters = [MeterProcess(on_postgresql, tmp_path / f"meter-{number}.log") for number in range(3)]
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        for meter in meters:
            stack.push_async_callback(meter.kill)
            await meter.start(session)
        yield meters


async def post_until_taken(apis: list[Api], number: int, pick: random.Random) -> None:
    """Send a batch to any meter until one acknowledges it. Half of it is also in the next batch."""
    events = [cloud_event(str(number * BATCH // 2 + index)) for index in range(BATCH)]
    while True:
        answer = await pick.choice(apis).post_events(events)
        if answer.status == 200:
            assert answer.body["accepted"] + answer.body["duplicate"] == BATCH
            return
        assert (answer.status, answer.reason) == (503, "LedgerUnavailable")


async def pay_until_taken(remotes: list[MeterClient], number: int, pick: random.Random) -> None:
    """Send a top-up and the records to any meter."""
    while True:
        try:
            remote = pick.choice(remotes)
            await remote.record(FACTS)
            await remote.post_topup(topup(f"pay_{number}"))
            return
        except LedgerUnavailable:
            await asyncio.sleep(0.01)


async def test_b12_three_meters_and_lost_connections_charge_all_once(
    replicas: list[MeterProcess], on_postgresql: Database, postgres: Postgres, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text(OPERATOR)
    pick = random.Random(5)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        apis = [Api(meter.url, session) for meter in replicas]
        remotes = [await stack.enter_async_context(MeterClient(meter.url, token)) for meter in replicas]
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                for number in range(TOPUPS):
                    tasks.create_task(pay_until_taken(remotes, number, pick))
                for number in range(BATCHES):
                    tasks.create_task(post_until_taken(apis, number, pick))
            for _ in range(CUTS):
                await asyncio.to_thread(postgres.cut_off, on_postgresql.name)
                await asyncio.sleep(pick.uniform(0, 0.2))
    events = (BATCHES + 1) * BATCH // 2
    async with opened(on_postgresql) as ledger:
        assert await balance(ledger) == TOPUPS * TEN - events * CALL_CHARGE
        assert await ledger.pending_count() == 0
    on_postgresql.check()


async def ready(session: aiohttp.ClientSession, meter: MeterProcess) -> int:
    """The answer of /readyz."""
    async with session.get(meter.url + "/readyz") as response:
        return response.status


@pytest.mark.parametrize("stop", [Postgres.stop, Postgres.crash], ids=["stopped", "crashed"])
async def test_a_meter_survives_its_database(
    replicas: list[MeterProcess], on_postgresql: Database, postgres: Postgres, stop: object
) -> None:
    assert callable(stop)
    meter = replicas[0]
    async with aiohttp.ClientSession() as session:
        api = Api(meter.url, session)
        assert (await api.post_events([cloud_event("before")])).status == 200
        await asyncio.to_thread(stop, postgres)
        try:
            lost = await api.post_events([cloud_event("lost")])
            assert (lost.status, lost.reason) == (503, "LedgerUnavailable")
            assert await ready(session, meter) == 503
            async with session.get(meter.url + "/healthz") as response:
                assert response.status == 200, "alive: a restart would help nobody"
        finally:
            await asyncio.to_thread(postgres.start)
        async with asyncio.timeout(60):
            while True:
                if await ready(session, meter) == 200:
                    break
                await asyncio.sleep(0.05)
        answer = await api.post_events([cloud_event("lost"), cloud_event("before")])
        assert (answer.status, answer.body["accepted"], answer.body["duplicate"]) == (200, 1, 1)
    on_postgresql.check()
