"""`farebox meter`: opens the ledger, serves the API until it is stopped, and finishes running requests.

The port opens before the database, so that probes can tell a slow migration from a dead process.
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
"""The time that running requests have to finish; below the pod's terminationGracePeriodSeconds."""
_RETRY_SECONDS: Final = 2.0

_log = structlog.get_logger(__name__)


async def run(settings: MeterSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then finish the running requests.

    Raises:
        ConfigurationError: a setting is invalid, or the port is in use.
    """
    client = await KubeClient.connect(settings.kubeconfig)
    try:
        authenticator = KubeAuthenticator(client, settings.token_audience, settings.review_cache_seconds)
        meter = Meter(authenticator, MeterMetrics())
        await serve(meter, settings.ledger_url, settings.listen_host, settings.listen_port, stop)
    finally:
        await client.close()


async def serve(meter: Meter, ledger_url: str, host: str, port: int, stop: asyncio.Event) -> None:
    """Serve `meter` on this address; open and close its ledger."""
    runner = web.AppRunner(create_app(meter), shutdown_timeout=SHUTDOWN_SECONDS, access_log=None)
    await runner.setup()
    try:
        await listen(runner, host, port, "FAREBOX_LISTEN_PORT")
        _log.info("meter.listening", host=host, port=port)
        meter.ledger = await _open(meter, ledger_url, stop)
        if meter.ledger is not None:
            _log.info("ledger.open")
            await stop.wait()
    finally:
        await runner.cleanup()
        if meter.ledger is not None:
            await meter.ledger.close()
    _log.info("meter.stopped")


async def _open(meter: Meter, url: str, stop: asyncio.Event) -> Ledger | None:
    """Open the ledger; retry until its database can be opened. None if `stop` is set first."""
    while not stop.is_set():
        try:
            return await Ledger.open(
                url,
                on_commit=meter.metrics.commit_seconds.observe,
                advance_seconds=ADVANCE_SECONDS,
            )
        except LedgerUnavailable as error:
            _log.warning("ledger.open_failed", error=str(error), retry_seconds=_RETRY_SECONDS)
        try:
            await asyncio.wait_for(stop.wait(), _RETRY_SECONDS)
        except TimeoutError:
            continue
    return None
