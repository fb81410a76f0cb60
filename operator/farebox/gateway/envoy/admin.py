"""Envoy's admin interface, on its Unix socket: readiness, a new log file, and the way to a clean end.

A SIGTERM to Envoy cuts streams. So it is drained first: readiness goes, kept-alive connections are asked to
close, the listener closes a little later, and the calls that run are waited for.
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
    """A client of it, made inside a running event loop. Calls raise OSError when Envoy does not answer."""

    def __init__(self, socket: Path) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(socket)), timeout=aiohttp.ClientTimeout(total=_SECONDS)
        )

    async def __aenter__(self) -> "Admin":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._session.close()

    async def ready(self) -> bool:
        """Whether Envoy takes calls."""
        try:
            return await self._call("GET", "/ready") == "LIVE\n"
        except OSError:
            return False

    async def reopen_log(self) -> None:
        """Make it close its log and open it anew, by name."""
        await self._call("POST", "/reopen_logs")

    async def active_calls(self) -> int:
        """How many calls run."""
        text = await self._call("GET", f"/stats?filter=^{_ACTIVE}$")
        return int(text.rpartition(":")[2])

    async def drain(self, seconds: float, linger_seconds: float) -> bool:
        """Let this Envoy's work go elsewhere: readiness ends now, new calls are taken for `linger_seconds`.

        Returns when no call runs any more after that, or after `seconds`; whether all have ended (B18).
        """
        deadline = asyncio.get_running_loop().time() + max(seconds, linger_seconds)
        await self._call("POST", "/healthcheck/fail")
        await self._call("POST", "/drain_listeners?graceful&skip_exit")
        await asyncio.sleep(linger_seconds)
        await self._call("POST", "/drain_listeners")
        while active := await self.active_calls():
            if asyncio.get_running_loop().time() >= deadline:
                _log.warning("calls are cut off: the time to drain is over", active=active)
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True

    async def quit(self) -> None:
        """Make it end. It stops to answer here before it has written the last of its log."""
        await self._call("POST", "/quitquitquit")

    async def _call(self, method: str, path: str) -> str:
        try:
            async with self._session.request(method, f"http://envoy{path}") as response:
                text = await response.text()
        except (TimeoutError, aiohttp.ClientError) as error:
            raise OSError(f"envoy does not answer {path}: {type(error).__name__} {error}") from error
        if response.status not in (200, 503):
            raise OSError(f"envoy answers {path} with {response.status}: {text.strip()}")
        return text
