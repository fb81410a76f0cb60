"""`farebox meter`: opens the ledger, serves the API until it is told to stop, and leaves in good order.

The port is open before the database is, so that probes can tell a slow migration from a dead process.
"""

import asyncio
from typing import Final

import structlog
from aiohttp import web

from farebox.errors import LedgerUnavailable
from farebox.kube.client import KubeClient
from farebox.ledger.engine import ADVANCE_SECONDS, Ledger
from farebox.meter.app import create_app
from farebox.meter.auth import KubeAuthenticator
from farebox.meter.metrics import MeterMetrics
from farebox.meter.requests import Meter
from farebox.ports import listen
from farebox.settings import MeterSettings

SHUTDOWN_SECONDS: Final = 20.0
"""Running requests get so long to finish; below the pod's terminationGracePeriodSeconds."""
_RETRY_SECONDS: Final = 2.0

_log = structlog.get_logger(__name__)


async def run(settings: MeterSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set; then finish the running requests.

    Raises:
        ConfigurationError: the settings cannot work, or the port is taken.
    """
    client = await KubeClient.connect(settings.kubeconfig)
    try:
        authenticator = KubeAuthenticator(client, settings.token_audience, settings.review_cache_seconds)
        meter = Meter(authenticator, MeterMetrics())
        await serve(meter, settings.ledger_url, settings.listen_host, settings.listen_port, stop)
    finally:
        await client.close()


async def serve(meter: Meter, ledger_url: str, host: str, port: int, stop: asyncio.Event) -> None:
    """Serve `meter` on this address, opening and closing its ledger."""
    runner = web.AppRunner(create_app(meter), shutdown_timeout=SHUTDOWN_SECONDS, access_log=None)
    await runner.setup()
    try:
        await listen(runner, host, port, "FAREBOX_LISTEN_PORT")
        _log.info("meter listens", host=host, port=port)
        meter.ledger = await _open(meter, ledger_url, stop)
        if meter.ledger is not None:
            _log.info("ledger is open")
            await stop.wait()
    finally:
        await runner.cleanup()
        if meter.ledger is not None:
            await meter.ledger.close()
    _log.info("meter stopped")


async def _open(meter: Meter, url: str, stop: asyncio.Event) -> Ledger | None:
    """The ledger, as soon as its database lets itself be opened; None if told to stop before."""
    while not stop.is_set():
        try:
            return await Ledger.open(
                url,
                on_commit=meter.metrics.commit_seconds.observe,
                advance_seconds=ADVANCE_SECONDS,
            )
        except LedgerUnavailable as error:
            _log.warning("ledger cannot be opened; will try again", error=str(error))
        try:
            await asyncio.wait_for(stop.wait(), _RETRY_SECONDS)
        except TimeoutError:
            continue
    return None
