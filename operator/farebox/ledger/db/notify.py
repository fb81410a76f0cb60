"""How a meter hears at once of what other meters committed to the same PostgreSQL.

Notifications only wake those who wait; what changed is read from the tables. One that is lost costs the time
until the next look (feed.POLL_SECONDS), nothing else. So a commit is announced only where somebody else
listens: it would wake its own listener alone, for a tenth of a small commit. Those who listen say that they
are there.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import psycopg
import structlog
from sqlalchemy import Engine, event

CHANNEL: Final = "farebox_ledger"
"""What the ledger's commits are announced on, without a payload."""
HERE_SECONDS: Final = 10.0
"""How often a listener says that it is there; one that was not heard three times is gone."""
_NEW: Final = "new"
"""Says: I am here, and who else is?"""
_HERE: Final = "here"
_ANSWER_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 2.0

_log = structlog.get_logger(__name__)


class CommitListener:
    """Calls `heard` for each commit that is not of the engine's own connection. Made before its first one."""

    def __init__(self, engine: Engine, heard: Callable[[], None]) -> None:
        self._engine = engine
        self._heard = heard
        self._own = 0
        self._listening = False
        self._others_until = 0.0
        event.listen(engine, "connect", self._connected)

    def _connected(self, connection: Any, _record: Any) -> None:
        self._own = connection.info.backend_pid

    def may_listen(self) -> bool:
        """Whether another process may wait for this one's commits. Whoever hears nobody cannot know."""
        return not self._listening or time.monotonic() < self._others_until

    async def listen(self) -> None:
        """Listen until cancelled, whatever the database does."""
        _, arguments = self._engine.dialect.create_connect_args(self._engine.url)
        while True:
            try:
                await self._listen(dict(arguments))
            except psycopg.Error as error:
                _log.warning("other meters' commits are found more slowly", error=str(error))
            finally:
                self._listening = False
            await asyncio.sleep(_RETRY_SECONDS)

    async def _listen(self, arguments: dict[str, Any]) -> None:
        connection = await psycopg.AsyncConnection.connect(**arguments, autocommit=True)
        async with connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            # Whatever was committed before; and until they had the time to answer, others may be there.
            self._heard()
            self._others_until = time.monotonic() + _ANSWER_SECONDS
            own = connection.info.backend_pid
            say, due = _NEW, 0.0
            while True:
                if say:
                    await connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, say))
                    say, due = "", time.monotonic() + HERE_SECONDS
                    self._listening = True
                left = max(0.0, due - time.monotonic())
                async for notification in connection.notifies(timeout=left, stop_after=1):
                    if notification.pid in (own, self._own):
                        continue
                    self._others_until = time.monotonic() + 3 * HERE_SECONDS
                    if notification.payload == _NEW:
                        say = _HERE
                    elif notification.payload != _HERE:
                        self._heard()
                if time.monotonic() >= due:
                    say = _HERE
