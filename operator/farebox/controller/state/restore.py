"""Finds the top-ups that the ledger must confirm after it may have been restored from a backup.

A ledger restored from an older backup lacks the top-ups that were posted after it. The operator posts again
those that have a receipt: the ledger posts what it lacks, and the balance is unknown until all are in it. So
money that is only missing from a backup stops no service. A new leader does the same for the last top-ups
(docs/decisions/109).

The functions mark balances as unverified, and return the top-ups to reconcile.
"""

from datetime import datetime, timedelta
from typing import Final

from farebox.api import TopUpPhase
from farebox.controller.state.balances import Balances
from farebox.controller.state.cache import Cache
from farebox.domain.keys import ObjectKey
from farebox.meterapi.types import Bookmark

_CLOCK_SKEW: Final = timedelta(minutes=1)
"""How far the ledger's clock may have been set back, or be behind that of another replica."""


def mark_all_unverified(cache: Cache, balances: Balances) -> list[ObjectKey]:
    """Mark every account, after the ledger was replaced or restored."""
    return [
        topup
        for account in _paid_accounts(cache).union(cache.accounts)
        for topup in mark_account_unverified(cache, balances, account)
    ]


def mark_account_unverified(cache: Cache, balances: Balances, account: ObjectKey) -> list[ObjectKey]:
    """Mark one account, whose status reports more than the ledger has."""
    found = cache.accounts.get(account)
    sequence = 0 if found is None else found.status.ledger_sequence or 0
    topups = _posted(cache, account)
    balances.mark_unverified(account, topups, sequence)
    return topups


def mark_unread_unverified(cache: Cache, balances: Balances, read: Bookmark) -> list[ObjectKey]:
    """Mark the accounts with top-ups that were posted after the bookmark of an earlier leader.

    If the ledger was restored from a copy of the time in between, only the receipts of these top-ups are
    left. Without a bookmark, that is every top-up with a receipt.
    """
    since = None if read.written_at is None else read.written_at - _CLOCK_SKEW
    unread = []
    for account in _paid_accounts(cache):
        if topups := _posted(cache, account, since):
            balances.mark_unverified(account, topups, 0)
            unread += topups
    return unread


def _paid_accounts(cache: Cache) -> set[ObjectKey]:
    """Return the accounts that top-ups name, whether they exist or not."""
    return {
        ObjectKey(key.namespace, topup.spec.billing_account_ref.name) for key, topup in cache.topups.items()
    }


def _posted(cache: Cache, account: ObjectKey, since: datetime | None = None) -> list[ObjectKey]:
    """Return the top-ups of an account that have a receipt, but for those certainly older than `since`."""
    posted = []
    for key in cache.topups_of_account.of(account):
        topup = cache.topups.get(key)
        if topup is None or topup.status.phase is not TopUpPhase.POSTED:
            continue
        at = topup.status.posted_at
        if since is None or at is None or at >= since:
            posted.append(key)
    return posted
