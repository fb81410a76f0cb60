"""A gateway's process with a handler that forwards: python -m tests.gateway.program SETTINGS."""

import asyncio
import json
import signal
import sys
from pathlib import Path

import uvloop

from farebox.gateway.envoy.bootstrap import EnvoySettings
from farebox.gateway.transport import TransportSettings, serve
from farebox.meterapi.client import MeterClient
from tests.gateway.envoy_gateway import forwarding


async def main(settings: dict[str, str]) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    token = Path(settings["token"]) if "token" in settings else None
    forward = forwarding(settings["upstream"], model="qwen3-8b", api_key="ci")
    transport = TransportSettings(
        EnvoySettings(Path(settings["directory"])),
        source="gateway-0",
        linger_seconds=0,
        drain_seconds=20,
        ship_seconds=20,
        rotate_bytes=int(settings["rotate_bytes"]),
    )
    async with MeterClient(settings["meter"], token) as meter:
        await serve(forward, transport, meter, stop)


if __name__ == "__main__":
    uvloop.run(main(json.loads(sys.argv[1])))
