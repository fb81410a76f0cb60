"""Reads the meter's feed of changes into the spend, for ever. Decides nothing."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from farebox.errors import LedgerError
from farebox.gateway.spend.tracker import SpendTracker
from farebox.meterapi.types import Bookmark, LedgerAPI

log = structlog.get_logger(__name__)
_PAGE = 1000
_WAIT_SECONDS = 10.0
_CONFIRM_SECONDS = 0.2


@dataclass
class GatewayFeed:
    """The reader of the feed.

    Args:
        on_reset: called when the ledger is another one, or was restored from an older copy.
    """

    ledger: LedgerAPI
    spend: SpendTracker
    on_reset: Callable[[], None] = lambda: None
    bookmark: Bookmark = field(default_factory=Bookmark)
    current: asyncio.Event = field(default_factory=asyncio.Event)
    _resets: int = 0

    async def run(self) -> None:
        """Read for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._confirm())

    async def _follow(self) -> None:
        """Read pages as they come; a ledger that is away is asked again, ever more slowly."""
        # A quiet ledger keeps a request open so long, and must not be taken for one that is silent.
        wait_seconds, pause = min(_WAIT_SECONDS, self.spend.max_age / 3), 0.1
        while True:
            try:
                await self._read_page(wait_seconds)
                pause = 0.1
            except LedgerError as error:
                log.warning("feed.unavailable", error=str(error), retry_seconds=round(pause, 1))
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)

    async def _confirm(self) -> None:
        """Ask at once when usage was acknowledged, or it would count twice until the open request returns."""
        acknowledged = asyncio.Event()
        self.spend.on_acknowledged = acknowledged.set
        while True:
            await acknowledged.wait()
            await asyncio.sleep(_CONFIRM_SECONDS)
            acknowledged.clear()
            try:
                await self._read_page(0)
            except LedgerError as error:
                log.warning("feed.unavailable", error=str(error))

    async def _read_page(self, wait_seconds: float) -> None:
        asked_at, after, resets = self.spend.clock(), self.bookmark, self._resets
        page = await self.ledger.changes(after.sequence, wait_seconds, _PAGE)
        if self._resets != resets:
            # The other request found that the ledger is another one: this page may be of the old one.
            return
        if not page.follows(after):
            log.error("feed.reset", ledger=page.ledger_id, head=page.head, sequence=after.sequence)
            self.bookmark = Bookmark()
            self._resets += 1
            self.spend.forget()
            self.on_reset()
            return
        if page.next >= self.bookmark.sequence:
            self.bookmark = page.bookmark
        self.spend.update(page.accounts, page.quotas, page.complete, asked_at, page.next)
        if page.complete and not self.current.is_set():
            log.info("feed.current", sequence=page.next)
            self.current.set()
