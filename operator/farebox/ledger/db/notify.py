"""Wakes a meter's readers when another meter commits to the same PostgreSQL database.

Every commit is announced with NOTIFY. A notification has no payload: readers read the tables. A lost one
delays them until the next poll (feed.POLL_SECONDS).
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import psycopg
import structlog
from sqlalchemy import Engine, event

CHANNEL: Final = "farebox_ledger"
CHECK_SECONDS: Final = 10.0
"""How often an idle connection is used. A firewall drops one that is not used, without a sign."""
_RETRY_SECONDS: Final = 2.0

_log = structlog.get_logger(__name__)


class CommitListener:
    """Calls `on_commit` for each commit of another process. Create it before the engine connects."""

    def __init__(self, engine: Engine, on_commit: Callable[[], None]) -> None:
        self._engine = engine
        self._on_commit = on_commit
        self._own = 0
        event.listen(engine, "connect", self._connected)

    def _connected(self, connection: Any, _record: Any) -> None:
        self._own = connection.info.backend_pid

    async def listen(self) -> None:
        """Listen until cancelled; reconnect after errors."""
        _, arguments = self._engine.dialect.create_connect_args(self._engine.url)
        while True:
            try:
                await self._listen(dict(arguments))
            except psycopg.Error as error:
                _log.warning("ledger.listen_failed", error=str(error), retry_seconds=_RETRY_SECONDS)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _listen(self, arguments: dict[str, Any]) -> None:
        connection = await psycopg.AsyncConnection.connect(**arguments, autocommit=True)
        async with connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            # There may have been commits before the LISTEN.
            self._on_commit()
            while True:
                async for notification in connection.notifies(timeout=CHECK_SECONDS):
                    # The writer wakes its own readers without a round trip to the server.
                    if notification.pid != self._own:
                        self._on_commit()
                await connection.execute("SELECT 1")
