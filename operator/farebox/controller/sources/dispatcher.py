"""Turns changes of the cluster and updates of the ledger into requests in the work queue.

All keys are queued here, except those that a reconciler requeues itself. It decides nothing and never waits.
"""

from collections.abc import Iterable
from typing import Any

import structlog

from farebox.controller.queue import Kind, Priority, WorkQueue, account_key, service_key, topup_key
from farebox.controller.sources.mapping import (
    Request,
    requests_for,
    requests_for_all,
    requests_for_balance,
    requests_for_quota,
    was_edited,
)
from farebox.controller.state.balances import Balances, account_overdue
from farebox.controller.state.cache import Cache
from farebox.controller.state.entitlements import Entitlements
from farebox.controller.state.ledger_sync import LedgerSync
from farebox.controller.state.restore import mark_all_unverified
from farebox.controller.state.shared_backend_demand import SharedBackendDemand
from farebox.domain.facts import UNKNOWN
from farebox.domain.keys import ObjectKey
from farebox.kube.store import Change
from farebox.meterapi.types import AccountBalance, QuotaBalance

log = structlog.get_logger(__name__)
_FIGURES_DELAY_SECONDS = 0.2


class Dispatcher:
    """Queues what a change or an update concerns.

    Args:
        figures_seconds: how long to wait after a change of a free quota that only moves a figure.
    """

    def __init__(
        self,
        cache: Cache,
        queue: WorkQueue,
        balances: Balances,
        entitlements: Entitlements,
        shared_backend_demand: SharedBackendDemand,
        ledger_sync: LedgerSync,
        figures_seconds: float,
    ) -> None:
        self._cache = cache
        self._queue = queue
        self._balances = balances
        self._entitlements = entitlements
        self._shared_backend_demand = shared_backend_demand
        self._ledger_sync = ledger_sync
        self._figures_seconds = figures_seconds
        self._overdue: dict[ObjectKey, bool] = {}

    def on_change(self, change: Change[Any]) -> None:
        """Queue what depends on an object. The cache has the change already."""
        if change.kind == Kind.ACCOUNT and was_edited(change.old, change.new):
            # A credit limit can change the account's state, so the next balance concerns its services again.
            self._overdue.pop(change.key, None)
        self.enqueue(requests_for(self._cache, change))

    def on_receipt(self, balance: AccountBalance) -> None:
        """Apply the balance in a top-up's receipt, ahead of the feed."""
        if self._balances.update_account(balance):
            self.on_balance(balance.account)

    def on_balance(self, account: ObjectKey) -> None:
        """Queue an account whose balance changed; its services too, if it became or ceased to be overdue."""
        found = self._cache.accounts.get(account)
        if found is None:
            return
        overdue = account_overdue(self._balances, account, found)
        if overdue is UNKNOWN:
            # The account's reconciler resolves an unverified balance.
            self._queue.add(account_key(account))
            return
        if self._overdue.get(account) is overdue:
            # Only a figure changed: an account with much traffic is reconciled a few times a second.
            self._queue.add_after(account_key(account), _FIGURES_DELAY_SECONDS)
            return
        self._overdue[account] = overdue
        self.enqueue(requests_for_balance(self._cache, account))

    def on_balance_confirmed(self, account: ObjectKey) -> None:
        """Queue everything on an account whose balance was unverified and can be trusted again."""
        self._overdue.pop(account, None)
        self.on_balance(account)

    def on_balances_known(self) -> None:
        """Queue what waited for balances, and what changed while they were unknown."""
        for account in list(self._cache.accounts):
            self._queue.add(account_key(account), Priority.LOW)
            self.on_balance(account)
        for service in self._entitlements.services():
            self._queue.add(service_key(service), Priority.LOW)
        for service in list(self._shared_backend_demand.undecided):
            self._queue.add(service_key(service), Priority.LOW)

    def on_balances_unknown(self) -> None:
        """Queue all accounts, which report that the feed is silent; their services keep their state."""
        log.warning("balances.unknown", silent_seconds=round(self._balances.age(), 1))
        for account in list(self._cache.accounts):
            self._queue.add(account_key(account), Priority.LOW)

    def on_quota(self, quota: QuotaBalance, turned: bool) -> None:
        """Queue the services of a free quota: now if it began or ended (`turned`), or later."""
        delay = 0.0 if turned else self._figures_seconds
        self.enqueue(requests_for_quota(self._cache, quota.account, quota.model, delay))

    def on_reservation(self, service: ObjectKey) -> None:
        """Queue a service whose reservation changed."""
        self._queue.add(service_key(service))

    def on_ledger_reset(self) -> None:
        """Send the ledger all records and top-ups again: it was replaced or restored from a backup."""
        self._overdue.clear()
        self._ledger_sync.forget_all()
        self.enqueue_topups(mark_all_unverified(self._cache, self._balances))

    def enqueue_topups(self, topups: Iterable[ObjectKey]) -> None:
        """Queue top-ups as bulk work."""
        self.enqueue(Request(topup_key(topup), Priority.LOW) for topup in topups)

    def enqueue(self, requests: Iterable[Request]) -> None:
        """Put requests into the work queue."""
        for request in requests:
            if request.delay:
                self._queue.add_after(request.key, request.delay, request.priority)
            else:
                self._queue.add(request.key, request.priority)

    def enqueue_all(self) -> None:
        """Queue every object as bulk work: after taking the Lease, and after each resync."""
        self.enqueue(requests_for_all(self._cache, self._entitlements.services()))
