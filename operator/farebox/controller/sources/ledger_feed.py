"""Reads the ledger's feed of changes into the balances and terms, for ever. Decides nothing."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from farebox.controller.state.balances import Balances
from farebox.controller.state.entitlements import Entitlements
from farebox.domain.keys import ObjectKey
from farebox.errors import LedgerError
from farebox.meterapi.types import Bookmark, ChangePage, LedgerAPI, QuotaBalance

log = structlog.get_logger(__name__)
_PAGE = 1000


@dataclass
class LedgerFeed:
    """The reader of the feed.

    Args:
        on_changed: called with each account whose balance moved.
        on_quota: called with each free quota that moved, and whether it came into being, was used up, or
            both the other way.
        on_reservation: called with each service whose reservation changed.
        on_known: called when balances can be trusted again after a silence.
        on_reset: called when the ledger is another one, or was restored from an older copy.
        on_back: called when the ledger answers again after it did not.
        wait_seconds: how long a quiet ledger keeps a request open; below the balances' max_age.
    """

    ledger: LedgerAPI
    balances: Balances
    entitlements: Entitlements
    on_changed: Callable[[ObjectKey], None]
    on_quota: Callable[[QuotaBalance, bool], None]
    on_reservation: Callable[[ObjectKey], None]
    on_known: Callable[[], None]
    on_reset: Callable[[], None]
    on_back: Callable[[], None]
    wait_seconds: float
    before: Bookmark = field(default_factory=Bookmark)
    """How far an earlier operator had read, which may have been of another history."""
    bookmark: Bookmark = field(default_factory=Bookmark)
    current: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the feed was read to its end for the first time."""
    _away: bool = False

    async def run(self) -> None:
        """Read pages as they come; a ledger that is away is asked again, ever more slowly."""
        pause = 0.1
        while True:
            try:
                await self._read_page()
                pause = 0.1
            except LedgerError as error:
                self._away = True
                log.warning("feed.unavailable", error=str(error), retry_seconds=round(pause, 1))
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)

    async def _read_page(self) -> None:
        if self.before.sequence:
            await self._compare()
        # Until it was read to its end nothing is known, so an empty ledger must not keep the request open;
        # nor must one that was away, as others wait for it to be back.
        wait = self.wait_seconds if self.balances.complete and not self._away else 0.0
        page = await self.ledger.changes(self.bookmark.sequence, wait, _PAGE)
        if self._away:
            self._away = False
            self.on_back()
        if not page.follows(self.bookmark):
            self._reset(page, self.bookmark)
            return
        self.bookmark = page.bookmark
        was_known = self.balances.known
        for account in self.balances.update(page.accounts, page.complete):
            self.on_changed(account)
        for quota, turned in self.entitlements.update_quotas(page.quotas):
            self.on_quota(quota, turned)
        for service in self.entitlements.update_reservations(page.reservations):
            self.on_reservation(service)
        if self.balances.known and not was_known:
            log.info("feed.current", sequence=page.next)
            self.on_known()
            self.current.set()

    async def _compare(self) -> None:
        """Nothing is known yet: was the ledger restored while no operator was there to hear of it?"""
        page = await self.ledger.changes(self.before.sequence, 0.0, 1)
        if not page.follows(self.before):
            self._reset(page, self.before)
        self.before = Bookmark()

    def _reset(self, page: ChangePage, read: Bookmark) -> None:
        log.error("feed.reset", ledger=page.ledger_id, head=page.head, sequence=read.sequence)
        self.bookmark = Bookmark()
        self.balances.forget()
        self.entitlements.forget()
        self.on_reset()
