"""All that stands between Envoy and the rules, started and ended in the right order.

In: decisions are served and usage is shipped. Out: Envoy is drained while decisions go on, then ended, then
the rest of its log is shipped, and only then this returns.
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
from farebox.gateway.interface import HeadHandler, OnAbandoned
from farebox.gateway.metering.log_segments import may_be_written
from farebox.gateway.metering.outbox import ROTATE_BYTES, OnAcknowledged, OnUsage, Outbox
from farebox.gateway.metering.publisher import UsagePublisher
from farebox.meterapi.client import MeterClient
from farebox.metrics import GATEWAY_USAGE_BACKLOG, GATEWAY_USAGE_BACKLOG_AGE

_LAST_LINES_SECONDS: Final = 5.0
"""How long an Envoy that was told to end may take to write the last of its log."""
_POLL_SECONDS: Final = 0.01

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """How the transport runs.

    Args:
        envoy: what Envoy was configured with; the directory, above all.
        source: this gateway's name in the ledger: the same as long as the directory is the same.
        meter_url: without a path.
        meter_token_file: a bearer token, read anew when it changes; None sends none.
        linger_seconds: a draining Envoy takes new calls for so long, until others know that it goes.
        drain_seconds: how long running calls are waited for at the end.
        ship_seconds: how long usage is still sent after that, if the meter does not take it at once. What is
            left then is sent after the next start, if the directory is still there.
        rotate_bytes: a larger file of the log is put away, and deleted when the meter has all that is in it.
    """

    envoy: EnvoySettings
    source: str
    meter_url: str
    meter_token_file: Path | None
    linger_seconds: float = 5.0
    drain_seconds: float = 600.0
    ship_seconds: float = 60.0
    rotate_bytes: int = ROTATE_BYTES


async def serve(
    handler: HeadHandler,
    settings: TransportSettings,
    stop: asyncio.Event,
    *,
    on_usage: OnUsage = lambda _line, _paid: None,
    on_acknowledged: OnAcknowledged = lambda _calls, _leases, _sequence: None,
    on_unread: OnAbandoned = lambda _: None,
) -> None:
    """Serve the Envoy of `settings` until `stop` is set, then drain and end it.

    Args:
        handler: decides; asked on even while Envoy drains.
        on_usage: hears of each call's end a moment after it.
        on_acknowledged: hears of calls that the meter has taken; see Outbox.
        on_unread: hears of calls that may not have gone on their way.

    Raises:
        OSError: the socket cannot be made, or the disk takes no bookmark.
    """
    envoy = settings.envoy
    async with (
        Admin(envoy.admin_socket) as admin,
        MeterClient(settings.meter_url, settings.meter_token_file) as meter,
        listening(envoy.decision_socket, handler, envoy.max_body_bytes, on_unread),
    ):
        events = UsagePublisher(meter)
        outbox = Outbox(envoy.log_file, settings.source, events, admin.reopen_log, on_usage, on_acknowledged)
        outbox.rotate_bytes = settings.rotate_bytes
        _show(outbox)
        no_more_lines = asyncio.Event()
        shipping = asyncio.create_task(outbox.run(no_more_lines, settings.ship_seconds))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({shipping, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not shipping.done():
                await _end_envoy(admin, settings)
                no_more_lines.set()
            await shipping
        finally:
            stopping.cancel()
            shipping.cancel()
    if outbox.behind:
        _log.error("usage is left in the log: the meter did not take it", log=str(envoy.log_file))


def _show(outbox: Outbox) -> None:
    """Let /metrics ask how much usage waits, and for how long."""

    def age() -> float:
        first = outbox.backlog()[1]
        return 0.0 if first is None else max(0.0, (datetime.now(UTC) - first).total_seconds())

    GATEWAY_USAGE_BACKLOG.set_function(lambda: outbox.backlog()[0])
    GATEWAY_USAGE_BACKLOG_AGE.set_function(age)


async def _end_envoy(admin: Admin, settings: TransportSettings) -> None:
    """Drain it and make it end; returns when its log is whole."""
    try:
        await admin.drain(settings.drain_seconds, settings.linger_seconds)
        await admin.quit()
    except OSError as error:
        _log.warning("envoy is gone already", error=str(error))
    if not await _is_whole(settings.envoy.log_file):
        _log.warning("envoy may still write to its log: what comes is sent at the next start")


async def _is_whole(log_file: Path) -> bool:
    """Wait for an Envoy that ends; whether its last line is in the log."""
    deadline = asyncio.get_running_loop().time() + _LAST_LINES_SECONDS
    while may_be_written(log_file):
        if asyncio.get_running_loop().time() >= deadline:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True
