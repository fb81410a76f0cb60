"""Crediting and charging survive kill -9 at any moment, and SIGTERM finishes running requests."""

import asyncio
import random
import sys
from pathlib import Path

import aiohttp
import pytest

from farebox.errors import LedgerUnavailable
from farebox.meterapi.client import MeterClient
from tests.ledger.databases import Database
from tests.ledger.support import CALL_CHARGE, FACTS, balance, opened, topup
from tests.meter.support import GATEWAY, OPERATOR, Api, cloud_event
from tests.support.ports import free_port

KILLS = 5
BATCH = 20
TEN = 10_000_000_000


class MeterProcess:
    """A meter on one port that is killed and restarted."""

    def __init__(self, database: Database, log: Path) -> None:
        self._database = database
        self._log = log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, session: aiohttp.ClientSession) -> None:
        """Start it and wait until it is ready."""
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.meter.program", self._database.url, str(self.port), stderr=log
            )
        async with asyncio.timeout(60):
            while True:
                assert self.process.returncode is None, self._log.read_text()
                try:
                    async with session.get(self.url + "/readyz") as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.02)

    async def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """The operator's token."""
    path = tmp_path / "token"
    path.write_text(OPERATOR)
    return path


class Client:
    """Sends numbered requests, each until it is acknowledged. A stop lets it finish the current one."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.failures = 0
        self.stopping = False
        self.progress = asyncio.Event()

    async def post_usage(self, api: Api, name: str) -> None:
        """Batches of events, one after the other."""
        number, in_doubt = 0, False
        while in_doubt or not self.stopping:
            in_doubt = True
            events = [cloud_event(f"{name}-{number}-{index}") for index in range(BATCH)]
            try:
                answer = await api.post_events(events, GATEWAY)
            except aiohttp.ClientError:
                self.failures += 1
                await asyncio.sleep(0.01)
                continue
            if answer.status == 200:
                assert answer.body["accepted"] + answer.body["duplicate"] == BATCH
                self.acknowledged += BATCH
                number, in_doubt = number + 1, False

    async def post_topups(self, remote: MeterClient) -> None:
        """Top-ups, one after the other."""
        in_doubt = False
        while in_doubt or not self.stopping:
            in_doubt = True
            try:
                await remote.post_topup(topup(f"pay_{self.acknowledged}"))
            except LedgerUnavailable:
                self.failures += 1
                await asyncio.sleep(0.01)
                continue
            self.acknowledged += 1
            in_doubt = False
            self.progress.set()


async def test_kill_9_at_random_moments_loses_and_doubles_nothing(
    database: Database, tmp_path: Path, token_file: Path
) -> None:
    async with opened(database) as ledger:
        await ledger.record(FACTS)
    meter = MeterProcess(database, tmp_path / "meter.log")
    moments = random.Random(20260301)
    payer, gateways = Client(), [Client(), Client()]
    async with aiohttp.ClientSession() as session, MeterClient(meter.url, token_file) as remote:
        await meter.start(session)
        api = Api(meter.url, session)
        async with asyncio.TaskGroup() as tasks:
            for number, gateway in enumerate(gateways):
                tasks.create_task(gateway.post_usage(api, f"g{number}"))
            tasks.create_task(payer.post_topups(remote))
            for _ in range(KILLS):
                payer.progress.clear()
                await payer.progress.wait()
                await asyncio.sleep(moments.uniform(0, 0.15))
                await meter.kill()
                await meter.start(session)
            for client in (payer, *gateways):
                client.stopping = True
        await meter.kill()
    charged = sum(gateway.acknowledged for gateway in gateways)
    assert payer.failures + sum(gateway.failures for gateway in gateways) >= KILLS
    async with opened(database) as ledger:
        assert await balance(ledger) == payer.acknowledged * TEN - charged * CALL_CHARGE
        assert await ledger.pending_count() == 0
    database.check()


async def test_sigterm_lets_running_requests_finish_and_ends_long_polls(
    database: Database, tmp_path: Path, token_file: Path
) -> None:
    meter = MeterProcess(database, tmp_path / "meter.log")
    async with aiohttp.ClientSession() as session, MeterClient(meter.url, token_file) as remote:
        await meter.start(session)
        assert meter.process is not None
        api = Api(meter.url, session)
        polling = asyncio.create_task(remote.changes(0, 50))
        await remote.changes(0, 0.05)
        posting = [
            asyncio.create_task(api.post_events([cloud_event(f"{number}-{index}") for index in range(500)]))
            for number in range(4)
        ]
        # With the first answer the others are on their way.
        await asyncio.wait(posting, return_when=asyncio.FIRST_COMPLETED)
        meter.process.terminate()
        assert await asyncio.wait_for(meter.process.wait(), 60) == 0
        assert (await polling).accounts == ()
        answers = await asyncio.gather(*posting)
    assert [answer.body["accepted"] for answer in answers] == [500] * 4
    async with opened(database) as ledger:
        assert await ledger.pending_count() == 2_000
    database.check()
