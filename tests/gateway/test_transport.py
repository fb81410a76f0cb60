"""The end of a gateway: what Envoy writes last is shipped too (B19)."""

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import web

from farebox.gateway import transport
from farebox.gateway.envoy.bootstrap import EnvoySettings
from farebox.gateway.metering.log_segments import may_be_written
from farebox.meterapi.client import MeterClient
from tests.gateway.envoy_gateway import chat, forwarding, gateway
from tests.gateway.h2_client import eventually
from tests.gateway.ledger_rows import stored
from tests.gateway.metering.test_outbox import Log, calls
from tests.ledger.databases import Database
from tests.meter.support import Running


class SlowToEnd:
    """Ends as Envoy does, first its admin interface and then the rest of its log, and takes its time."""

    def __init__(self, settings: EnvoySettings) -> None:
        self.log = Log(settings.log_file)
        self.silent = asyncio.Event()
        self._socket = settings.admin_socket

    async def run(self) -> None:
        quit_requested = asyncio.Event()

        async def answer(request: web.BaseRequest) -> web.Response:
            if request.path == "/quitquitquit":
                quit_requested.set()
            return web.Response(text="http.gateway.downstream_rq_active: 0\n")

        runner = web.ServerRunner(web.Server(answer))
        await runner.setup()
        await web.UnixSite(runner, str(self._socket)).start()
        await quit_requested.wait()
        await runner.cleanup()
        self.silent.set()

    def end(self) -> None:
        """Its last line, and the end of the process."""
        self.log.write()
        self.log.close()


async def test_the_end_waits_until_envoy_has_written_its_last_line(
    tmp_path: Path, meter: Running, database: Database, token: Path
) -> None:
    settings = transport.TransportSettings(
        EnvoySettings(tmp_path), "gateway-0", linger_seconds=0, drain_seconds=5
    )
    envoy = SlowToEnd(settings.envoy)
    envoy.log.write()
    ending, stop = asyncio.create_task(envoy.run()), asyncio.Event()
    async with MeterClient(meter.url, token) as client:
        serving = asyncio.create_task(transport.serve(forwarding("127.0.0.1:1"), settings, client, stop))
        await eventually(lambda: stored(database) == calls(1))
        stop.set()
        await envoy.silent.wait()
        # Time enough for an end that waits for nothing; one that waits for the log is still there.
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(serving), 0.3)
        envoy.end()
        await asyncio.gather(serving, ending)
    assert stored(database) == calls(2)


async def test_the_wait_for_an_envoy_that_does_not_end_is_limited(
    tmp_path: Path, meter: Running, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_LAST_LINES_SECONDS", 0.05)
    settings = transport.TransportSettings(EnvoySettings(tmp_path), "gateway-0")
    stop = asyncio.Event()
    stop.set()
    async with MeterClient(meter.url, token) as client:
        with (tmp_path / "usage.log").open("ab"):
            await transport.serve(forwarding("127.0.0.1:1"), settings, client, stop)


def test_a_log_is_complete_when_no_process_has_it_open_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "usage.log"
    assert not may_be_written(path)
    with path.open("ab"), path.open("rb"):
        assert may_be_written(path)
        path.rename(tmp_path / "usage.log.00000001")
        assert may_be_written(path), "it is the same file after a rotation"
    with (tmp_path / "usage.log.00000001").open("rb"):
        assert not may_be_written(path)
    with path.open("ab"):
        assert may_be_written(path), "the question leaves nothing behind that keeps others out"


async def test_each_call_is_in_the_log_when_envoy_has_closed_it(tmp_path: Path, upstream: str) -> None:
    async with gateway(tmp_path, forwarding(upstream)) as running:
        for _ in range(5):
            assert (await running.call(body=chat(max_tokens=1))).status == 200
        assert may_be_written(running.settings.log_file)
        await running.admin.quit()
        await eventually(lambda: not may_be_written(running.settings.log_file))
        assert len(running.lines()) == 5
