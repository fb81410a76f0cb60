"""The transport between Envoy and the handler: start, operation, and an orderly end.

During operation it serves decisions and ships usage. At the end it drains Envoy while decisions continue,
stops Envoy, ships the rest of the log, and then returns.
"""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from farebox.gateway.envoy.admin import Admin
from farebox.gateway.envoy.bootstrap import EnvoySettings
from farebox.gateway.ext_proc.server import listening
from farebox.gateway.interface import HeadHandler, OnAbandoned, OnRefused
from farebox.gateway.metering.log_segments import may_be_written
from farebox.gateway.metering.outbox import ROTATE_BYTES, OnAcknowledged, OnUsage, Outbox
from farebox.gateway.metering.publisher import UsagePublisher
from farebox.meterapi.client import MeterClient
from farebox.metrics import GATEWAY_USAGE_BACKLOG, GATEWAY_USAGE_BACKLOG_AGE

_LAST_LINES_SECONDS: Final = 5.0
"""The time that a stopping Envoy has to write the rest of its log."""
_POLL_SECONDS: Final = 0.01

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """Settings of the transport.

    Args:
        envoy: the settings that Envoy was configured with, its directory above all.
        source: this gateway's name in the ledger, which must stay the same with the directory.
        linger_seconds: how long a draining Envoy accepts new calls, until load balancers have noticed.
        drain_seconds: how long running calls may take to finish at the end.
        ship_seconds: how long usage is sent after that. The rest is sent after the next start, if the
            directory still exists.
        rotate_bytes: a larger log file is rotated, and deleted when all of its usage is acknowledged.
    """

    envoy: EnvoySettings
    source: str
    linger_seconds: float = 5.0
    drain_seconds: float = 600.0
    ship_seconds: float = 60.0
    rotate_bytes: int = ROTATE_BYTES


async def serve(
    handler: HeadHandler,
    settings: TransportSettings,
    meter: MeterClient,
    stop: asyncio.Event,
    *,
    on_usage: OnUsage = lambda _line, _paid: None,
    on_acknowledged: OnAcknowledged = lambda _calls, _leases, _sequence: None,
    on_abandoned: OnAbandoned = lambda _: None,
    on_refused: OnRefused = lambda _head, _status, _code: None,
) -> None:
    """Serve the Envoy of `settings` until `stop` is set, then drain and end it.

    Args:
        handler: decides calls, even while Envoy drains.
        meter: receives the usage.
        on_usage: receives each call shortly after its end.
        on_acknowledged: receives calls that the meter has acknowledged; see Outbox.
        on_abandoned: receives calls whose client left during the decision.
        on_refused: receives calls that are refused without asking the handler.

    Raises:
        OSError: the socket cannot be created, or the checkpoint cannot be written.
    """
    envoy = settings.envoy
    async with (
        Admin(envoy.admin_socket) as admin,
        listening(envoy.decision_socket, handler, envoy.max_body_bytes, on_abandoned, on_refused),
    ):
        events = UsagePublisher(meter)
        outbox = Outbox(envoy.log_file, settings.source, events, admin.reopen_log, on_usage, on_acknowledged)
        outbox.rotate_bytes = settings.rotate_bytes
        _export_metrics(outbox)
        no_more_lines = asyncio.Event()
        shipping = asyncio.create_task(outbox.run(no_more_lines, settings.ship_seconds))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({shipping, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not shipping.done():
                await _stop_envoy(admin, settings)
                no_more_lines.set()
            await shipping
        finally:
            stopping.cancel()
            shipping.cancel()
    if outbox.behind:
        _log.error("usage.unsent", log=str(envoy.log_file))


def _export_metrics(outbox: Outbox) -> None:
    """Export how much usage waits, and for how long."""

    def age() -> float:
        first = outbox.backlog()[1]
        return 0.0 if first is None else max(0.0, (datetime.now(UTC) - first).total_seconds())

    GATEWAY_USAGE_BACKLOG.set_function(lambda: outbox.backlog()[0])
    GATEWAY_USAGE_BACKLOG_AGE.set_function(age)


async def _stop_envoy(admin: Admin, settings: TransportSettings) -> None:
    """Drain Envoy and stop it; returns when its log is complete."""
    try:
        await admin.drain(settings.drain_seconds, settings.linger_seconds)
        await admin.quit()
    except OSError as error:
        _log.warning("envoy.already_ended", error=str(error))
    if not await _is_complete(settings.envoy.log_file):
        _log.warning("envoy.log_still_open", log=str(settings.envoy.log_file))


async def _is_complete(log_file: Path) -> bool:
    """Wait until no process writes the log; False if one still does after _LAST_LINES_SECONDS."""
    deadline = asyncio.get_running_loop().time() + _LAST_LINES_SECONDS
    while may_be_written(log_file):
        if asyncio.get_running_loop().time() >= deadline:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True
