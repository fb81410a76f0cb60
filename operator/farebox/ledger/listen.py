"""How a meter hears at once of what other meters committed to the same PostgreSQL.

Notifications only wake those who wait; what changed is read from the tables. One that is lost costs the time
until the next look (feed.POLL_SECONDS), nothing else.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import psycopg
import structlog
from sqlalchemy import Engine, event

CHANNEL: Final = "farebox_ledger"
"""What the ledger's commits are announced on."""
_RETRY_SECONDS: Final = 2.0

_log = structlog.get_logger(__name__)


class OtherWriters:
    """Calls `heard` for each commit that is not of the engine's own connection. Made before its first one."""

    def __init__(self, engine: Engine, heard: Callable[[], None]) -> None:
        self._engine = engine
        self._heard = heard
        self._own = 0
        event.listen(engine, "connect", self._connected)

    def _connected(self, connection: Any, _record: Any) -> None:
        self._own = connection.info.backend_pid

    async def listen(self) -> None:
        """Listen until cancelled, whatever the database does."""
        _, arguments = self._engine.dialect.create_connect_args(self._engine.url)
        while True:
            try:
                await self._listen(dict(arguments))
            except psycopg.Error as error:
                _log.warning("other meters' commits are found more slowly", error=str(error))
            await asyncio.sleep(_RETRY_SECONDS)

    async def _listen(self, arguments: dict[str, Any]) -> None:
        connection = await psycopg.AsyncConnection.connect(**arguments, autocommit=True)
        async with connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            # Whatever was committed before.
            self._heard()
            async for notification in connection.notifies():
                if notification.pid != self._own:
                    self._heard()
