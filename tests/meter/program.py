"""A meter as a process, with the fixed tokens: python -m tests.meter.program URL PORT."""

import asyncio
import signal
import sys

from farebox.meter.metrics import MeterMetrics
from farebox.meter.requests import Meter
from farebox.meter.server import serve
from tests.meter.support import FixedTokens


async def main(url: str, port: int) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await serve(Meter(FixedTokens(), MeterMetrics()), url, "127.0.0.1", port, stop)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
