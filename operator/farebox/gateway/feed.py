"""Subscribes the gateway's spend tracker to the meter's feed of changes."""

from collections.abc import Callable
from typing import Final

from farebox.gateway.spend.tracker import SpendTracker
from farebox.meterapi.feed import FeedReader
from farebox.meterapi.types import ChangePage, LedgerAPI

_WAIT_SECONDS: Final = 10.0


def spend_feed(
    ledger: LedgerAPI, spend: SpendTracker, on_reset: Callable[[], None] = lambda: None
) -> FeedReader:
    """A feed reader that keeps the balances of the spend tracker current.

    Args:
        on_reset: called when the ledger is another one, or was restored from an older copy.
    """

    def update(page: ChangePage, requested_at: float) -> None:
        spend.update(page.accounts, page.quotas, page.complete, requested_at, page.next)

    def reset() -> None:
        spend.forget()
        on_reset()

    # A quiet ledger keeps a request open for this time, which must not look like an unreachable one.
    wait_seconds = min(_WAIT_SECONDS, spend.max_age / 3)
    feed = FeedReader(ledger, update, reset, wait_seconds, clock=spend.clock)
    # Acknowledged usage counts twice until its charges arrive: do not wait for the open request.
    spend.on_acknowledged = feed.refresh
    return feed
