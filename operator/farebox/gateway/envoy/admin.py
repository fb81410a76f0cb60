"""A client of Envoy's admin interface on its Unix socket: readiness, log rotation, draining and the end.

A SIGTERM cuts streams, so the gateway drains Envoy first: readiness fails, Envoy requests that keep-alive
connections close, the listener closes a little later, and running calls finish.
"""

import asyncio
from pathlib import Path
from typing import Final

import aiohttp
import structlog

_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.1
_ACTIVE: Final = "http.gateway.downstream_rq_active"

_log = structlog.get_logger(__name__)


class Admin:
    """The client, made inside a running event loop. Methods raise OSError if Envoy does not answer."""

    def __init__(self, socket: Path) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(socket)), timeout=aiohttp.ClientTimeout(total=_SECONDS)
        )

    async def __aenter__(self) -> "Admin":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._session.close()

    async def ready(self) -> bool:
        """Whether Envoy accepts calls."""
        try:
            return await self._call("GET", "/ready") == "LIVE\n"
        except OSError:
            return False

    async def reopen_log(self) -> None:
        """Make Envoy close its log and reopen it by name."""
        await self._call("POST", "/reopen_logs")

    async def active_calls(self) -> int:
        """The number of running calls."""
        text = await self._call("GET", f"/stats?filter=^{_ACTIVE}$")
        return int(text.rpartition(":")[2])

    async def drain(self, seconds: float, linger_seconds: float) -> bool:
        """Drain this Envoy: readiness fails now, and new calls are accepted for `linger_seconds` more (B18).

        Returns True when no call runs any more, False when some still run after `seconds`.
        """
        deadline = asyncio.get_running_loop().time() + max(seconds, linger_seconds)
        await self._call("POST", "/healthcheck/fail")
        await self._call("POST", "/drain_listeners?graceful&skip_exit")
        await asyncio.sleep(linger_seconds)
        await self._call("POST", "/drain_listeners")
        while active := await self.active_calls():
            if asyncio.get_running_loop().time() >= deadline:
                _log.warning("envoy.drain_timed_out", active_calls=active)
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True

    async def quit(self) -> None:
        """Make Envoy exit. It stops answering here before its log is complete."""
        await self._call("POST", "/quitquitquit")

    async def _call(self, method: str, path: str) -> str:
        try:
            async with self._session.request(method, f"http://envoy{path}") as response:
                text = await response.text()
        except (TimeoutError, aiohttp.ClientError) as error:
            raise OSError(f"Envoy does not answer {path}: {type(error).__name__} {error}") from error
        if response.status not in (200, 503):
            raise OSError(f"Envoy answers {path} with {response.status}: {text.strip()}")
        return text
