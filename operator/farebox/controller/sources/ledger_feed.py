"""Subscribes the operator's balances and entitlements to the meter's feed of changes."""

from collections.abc import Callable

from farebox.controller.state.balances import Balances
from farebox.controller.state.entitlements import Entitlements
from farebox.domain.keys import ObjectKey
from farebox.meterapi.feed import FeedReader
from farebox.meterapi.types import ChangePage, LedgerAPI, QuotaBalance


def ledger_feed(
    ledger: LedgerAPI,
    balances: Balances,
    entitlements: Entitlements,
    on_changed: Callable[[ObjectKey], None],
    on_quota: Callable[[QuotaBalance, bool], None],
    on_reservation: Callable[[ObjectKey], None],
    on_known: Callable[[], None],
    on_reset: Callable[[], None],
    on_back: Callable[[], None],
    wait_seconds: float,
) -> FeedReader:
    """A feed reader that keeps balances and entitlements current and reports what changed.

    Args:
        on_changed: called with each account whose balance changed.
        on_quota: called with each free quota that changed, and whether it was granted, became exhausted, or
            the reverse.
        on_reservation: called with each service whose reservation changed.
        on_known: called when balances become known, at first or after a silence.
        on_reset: called when the ledger is another one, or was restored from an older copy.
        on_back: called when the ledger answers again after a failure.
        wait_seconds: how long a quiet ledger keeps a request open; below the balances' max_age.
    """

    def update(page: ChangePage, _requested_at: float) -> None:
        was_known = balances.known
        for account in balances.update(page.accounts, page.complete):
            on_changed(account)
        for quota, turned in entitlements.update_quotas(page.quotas):
            on_quota(quota, turned)
        for service in entitlements.update_reservations(page.reservations):
            on_reservation(service)
        if balances.known and not was_known:
            on_known()

    def reset() -> None:
        balances.forget()
        entitlements.forget()
        on_reset()

    return FeedReader(ledger, update, reset, wait_seconds, on_back)
