"""The reader of the meter's feed of changes, for the operator and the gateway. It decides nothing."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from farebox.errors import LedgerError
from farebox.meterapi.types import Bookmark, ChangePage, LedgerAPI

_REFRESH_DELAY_SECONDS: Final = 0.2
"""The ledger commits within this time; several refreshes become one request."""
_MAX_RETRY_SECONDS: Final = 5.0

log = structlog.get_logger(__name__)


@dataclass
class FeedReader:
    """Reads the feed from its beginning and passes each page on, until it is cancelled.

    Args:
        on_page: called with each page, and the time by `clock` at which it was requested.
        on_reset: called when the ledger is another one or was restored from an older copy. The subscriber
            forgets its state; the reader then starts from the beginning.
        on_recovered: called when the ledger answers again after a failure.
        wait_seconds: how long the meter keeps a request open while nothing changes.
        clock: monotonic seconds.
        before: how far an earlier process had read, possibly in another history.
    """

    ledger: LedgerAPI
    on_page: Callable[[ChangePage, float], None]
    on_reset: Callable[[], None]
    wait_seconds: float
    on_recovered: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    before: Bookmark = field(default_factory=Bookmark)
    bookmark: Bookmark = field(default_factory=Bookmark)
    current: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the feed was read to its end for the first time."""
    failing: bool = False
    """Whether the last request failed."""
    _complete: bool = False
    _resets: int = 0
    _refresh: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Follow the feed; never returns."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._refreshes())

    def refresh(self) -> None:
        """Read the changes soon, beside the request that the meter keeps open."""
        self._refresh.set()

    async def _follow(self) -> None:
        """Read page after page. After a failure, retry with increasing delays."""
        delay = 0.1
        while True:
            try:
                if self.before.sequence:
                    await self._compare()
                # The first answer must not wait for a change, nor must the first one after a failure:
                # subscribers wait for it.
                wait_seconds = self.wait_seconds if self._complete and not self.failing else 0.0
                await self._read_page(wait_seconds)
                delay = 0.1
            except LedgerError as error:
                self.failing = True
                log.warning("feed.unavailable", error=str(error), retry_seconds=round(delay, 1))
                await asyncio.sleep(delay)
                delay = min(delay * 2, _MAX_RETRY_SECONDS)

    async def _refreshes(self) -> None:
        while True:
            await self._refresh.wait()
            await asyncio.sleep(_REFRESH_DELAY_SECONDS)
            self._refresh.clear()
            try:
                await self._read_page(0.0)
            except LedgerError as error:
                log.warning("feed.unavailable", error=str(error))

    async def _read_page(self, wait_seconds: float) -> None:
        requested_at, after, resets = self.clock(), self.bookmark, self._resets
        page = await self.ledger.changes(after.sequence, wait_seconds)
        if self.failing:
            self.failing = False
            self.on_recovered()
        if self._resets != resets:
            # The other request found a reset: this page may belong to the history before it.
            return
        if not page.follows(after):
            self._reset(page, after)
            return
        if page.next >= self.bookmark.sequence:
            self.bookmark = page.bookmark
        self._complete = self._complete or page.complete
        self.on_page(page, requested_at)
        if page.complete and not self.current.is_set():
            log.info("feed.current", sequence=page.next)
            self.current.set()

    async def _compare(self) -> None:
        """Find out whether the ledger was restored while no earlier process was running."""
        page = await self.ledger.changes(self.before.sequence, 0.0, 1)
        if not page.follows(self.before):
            self._reset(page, self.before)
        self.before = Bookmark()

    def _reset(self, page: ChangePage, read: Bookmark) -> None:
        log.error("feed.reset", ledger=page.ledger_id, head=page.head, sequence=read.sequence)
        self.bookmark = Bookmark()
        self._complete = False
        self._resets += 1
        self.on_reset()
