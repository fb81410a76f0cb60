"""Usage survives kill -9 of Envoy, the decision process and the meter, while clients call (B12, B19)."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import aiohttp
import pytest

from farebox.gateway.metering.outbox import ROTATE_BYTES
from farebox.gateway.metering.usage import InvalidLine, parse
from tests.gateway.envoy_gateway import Gateway, chat, envoy_only
from tests.gateway.h2_client import eventually
from tests.gateway.ledger_rows import stored
from tests.ledger.databases import Database
from tests.ledger.support import FACTS, opened
from tests.support.ports import free_port

ROUNDS = 3
CLIENTS = 4


class Killed:
    """A process that is killed and started again."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self._log = log
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([sys.executable, "-m", *self._arguments], stderr=log, stdout=log)

    def end(self, number: signal.Signals) -> int:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()[-2000:]
        self._process.send_signal(number)
        return self._process.wait(60)


class Clients:
    """Callers that send calls until the test stops them."""

    def __init__(self, running: Gateway, log: "Log") -> None:
        self._running = running
        self._log = log
        self.answered: set[str] = set()
        self.refused = 0
        self.stopping = False

    async def call(self) -> None:
        while not self.stopping:
            self._log.look()
            try:
                reply = await self._running.call(body=chat(max_tokens=2))
            except aiohttp.ClientError:
                self.refused += 1
                await asyncio.sleep(0.01)
                continue
            if reply.status == 200:
                self.answered.add(reply.headers["x-request-id"])
            else:
                assert reply.status == 503, reply.body
                self.refused += 1
                await asyncio.sleep(0.01)


class Log:
    """All files that Envoy's log ever had, each kept open: rotated ones are deleted when they are done."""

    def __init__(self, running: Gateway) -> None:
        self._log_file = running.settings.log_file
        self._files: dict[int, BinaryIO] = {}

    def look(self) -> None:
        """Find new files; called far more often than one is filled."""
        for path in self._log_file.parent.glob(f"{self._log_file.name}*"):
            with suppress(FileNotFoundError):
                file = path.open("rb")
                if self._files.setdefault(os.fstat(file.fileno()).st_ino, file) is not file:
                    file.close()

    def close(self) -> tuple[int, set[str]]:
        """How many files there were, and the ids of the calls in them."""
        self.look()
        calls: set[str] = set()
        for file in self._files.values():
            for line in file.read().splitlines():
                # An Envoy that is killed may leave the beginning of a line.
                with suppress(InvalidLine):
                    calls.add(parse(line).request_id)
            file.close()
        return len(self._files), calls


@asynccontextmanager
async def everything(
    tmp_path: Path, database: Database, upstream: str, token: Path, rotate_bytes: int = ROTATE_BYTES
) -> AsyncIterator[tuple[Gateway, Killed, Killed]]:
    """Envoy, decision process and meter, each a process."""
    async with opened(database) as ledger:
        await ledger.record(FACTS)
    port = free_port()
    meter = Killed(tmp_path / "meter.log", "tests.meter.program", database.url, str(port))
    settings = {
        "directory": str(tmp_path / "run"),
        "meter": f"http://127.0.0.1:{port}",
        "upstream": upstream,
        "token": str(token),
        "rotate_bytes": str(rotate_bytes),
    }
    decides = Killed(tmp_path / "decides.log", "tests.gateway.program", json.dumps(settings))
    async with envoy_only(tmp_path / "run") as running:
        meter.start()
        decides.start()
        try:
            yield running, decides, meter
        finally:
            decides.end(signal.SIGKILL)
            meter.end(signal.SIGKILL)


async def test_kill_9_of_any_process_loses_no_call_that_was_logged_and_charges_none_twice(
    tmp_path: Path, database: Database, upstream: str, token: Path
) -> None:
    moments = random.Random(20260301)
    # About ten calls fill a file of the log, so that kills come in the middle of rotations too.
    async with everything(tmp_path, database, upstream, token, rotate_bytes=4000) as parts:
        running, decides, meter = parts
        log = Log(running)
        clients = Clients(running, log)
        calling = [asyncio.create_task(clients.call()) for _ in range(CLIENTS)]
        for _ in range(ROUNDS):
            for victim in ("decides", "meter", "envoy"):
                before = len(clients.answered)
                await eventually(lambda before=before: len(clients.answered) > before + 5)
                await asyncio.sleep(moments.uniform(0, 0.1))
                if victim == "envoy":
                    os.kill(running.envoy.pid, signal.SIGKILL)
                    continue
                process = decides if victim == "decides" else meter
                process.end(signal.SIGKILL)
                process.start()
        clients.stopping = True
        await asyncio.gather(*calling)
        await eventually(lambda: running.settings.log_file.exists(), 60)
        files, logged = log.close()
        await eventually(lambda: set(stored(database)) >= logged, 60)
        charged = stored(database)
    assert len(charged) == len(set(charged))
    assert files > ROUNDS
    lost = clients.answered - set(charged)
    assert clients.refused > 0
    # Lines of the last 20 ms before Envoy was killed were in its memory only.
    assert len(lost) <= ROUNDS * CLIENTS * 40, f"{len(lost)} of {len(clients.answered)}"
    database.check()


async def test_sigterm_drains_envoy_and_ships_everything(
    tmp_path: Path, database: Database, upstream: str, token: Path
) -> None:
    async with everything(tmp_path, database, upstream, token) as (running, decides, _):
        clients = Clients(running, Log(running))
        calling = [asyncio.create_task(clients.call()) for _ in range(CLIENTS)]
        await eventually(lambda: len(clients.answered) > 50)
        assert await asyncio.to_thread(decides.end, signal.SIGTERM) == 0
        clients.stopping = True
        await asyncio.gather(*calling)
        assert set(stored(database)) == clients.answered
        decides.start()
    database.check()


async def test_calls_go_on_while_the_meter_is_down(
    tmp_path: Path, database: Database, upstream: str, token: Path
) -> None:
    async with everything(tmp_path, database, upstream, token) as (running, decides, meter):
        meter.end(signal.SIGKILL)
        clients = Clients(running, Log(running))
        calling = [asyncio.create_task(clients.call()) for _ in range(CLIENTS)]
        await eventually(lambda: len(clients.answered) > 200)
        decides.end(signal.SIGKILL)
        decides.start()
        before = len(clients.answered)
        await eventually(lambda: len(clients.answered) > before + 50)
        assert stored(database) == []
        meter.start()
        clients.stopping = True
        await asyncio.gather(*calling)
        await eventually(lambda: set(stored(database)) == clients.answered, 60)
    database.check()


@pytest.fixture(autouse=True)
def _short_names(tmp_path: Path) -> None:
    assert len(str(tmp_path / "run" / "decide.sock")) <= 107
