"""What comes in: changes from the watches and news of the ledger, into the cache and as keys into the queue.

The one place from which keys are queued, but for what a pass asks of its own accord. It decides nothing and
never waits.
"""

from collections.abc import Iterable
from typing import Any

import structlog

from farebox.controller.queue import Kind, Priority, WorkQueue, account_key, service_key
from farebox.controller.reconcile.gather import known_balance
from farebox.controller.reconcile.topups import mark_all_unverified
from farebox.controller.sources.mapping import (
    Request,
    requests_for,
    requests_for_all,
    requests_for_balance,
    requests_for_quota,
    was_edited,
)
from farebox.controller.state.balances import Balances
from farebox.controller.state.cache import Cache, Change, is_farebox_backend
from farebox.controller.state.entitlements import Entitlements
from farebox.controller.state.ledger_sync import LedgerSync
from farebox.controller.state.shared_backend_demand import SharedBackendDemand
from farebox.domain.billing.money import is_overdue, parse_amount
from farebox.domain.facts import UNKNOWN
from farebox.domain.keys import ObjectKey
from farebox.kube.names import key_of
from farebox.meterapi.types import AccountBalance, QuotaBalance

log = structlog.get_logger(__name__)
_FIGURES_REST_SECONDS = 0.2


class Dispatcher:
    """Takes in what happened, and asks for passes over what it concerns.

    Args:
        figures_seconds: how long a free quota rests that moved as a figure alone.
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

    def on_watch_event(self, kind: Kind, type_: str, raw: dict[str, Any]) -> None:
        """An event from a watch."""
        store = self._cache.store(kind)
        foreign = kind in (Kind.DEPLOYMENT, Kind.ENDPOINT) and not is_farebox_backend(raw)
        if foreign and key_of(raw) not in store:
            return
        if type_ == "DELETED" or foreign:
            # One that was Farebox's and was made somebody else's is gone, too.
            change = store.remove(key_of(raw), int(raw["metadata"]["resourceVersion"]))
        else:
            change = store.put(raw)
        if change is not None:
            self.on_change(change)

    def on_change(self, change: Change[Any]) -> None:
        """The cache has it already."""
        if change.kind is Kind.ACCOUNT and was_edited(change.old, change.new):
            # A credit limit turns the account's state as a balance does, so the next balance is news again.
            self._overdue.pop(change.key, None)
        self.enqueue(requests_for(self._cache, change))

    def on_receipt(self, balance: AccountBalance) -> None:
        """A balance that came with a receipt."""
        if self._balances.update_account(balance):
            self.on_balance(balance.account)

    def on_balance(self, account: ObjectKey) -> None:
        """A balance moved: the services are looked at again only if the account's state did, too."""
        found = self._cache.accounts.get(account)
        if found is None:
            return
        balance = known_balance(self._balances, account, found)
        if balance is UNKNOWN:
            # What is in doubt is for the account's pass to clear up.
            self._queue.add(account_key(account))
            return
        overdue = is_overdue(balance.balance, parse_amount(found.spec.credit_limit))
        if self._overdue.get(account) is overdue:
            # Figures alone: those of a busy account make a few passes a second, not one for each call.
            self._queue.add_after(account_key(account), _FIGURES_REST_SECONDS)
            return
        self._overdue[account] = overdue
        self.enqueue(requests_for_balance(self._cache, account))

    def on_balance_confirmed(self, account: ObjectKey) -> None:
        """A balance that was in doubt can be trusted: everything on the account is looked at anew."""
        self._overdue.pop(account, None)
        self.on_balance(account)

    def on_balances_known(self) -> None:
        """Balances are known again: what changed meanwhile, or waited for them, is looked at."""
        for account in list(self._cache.accounts):
            self._queue.add(account_key(account), Priority.LOW)
            self.on_balance(account)
        for service in self._entitlements.services():
            self._queue.add(service_key(service), Priority.LOW)
        for service in list(self._shared_backend_demand.undecided):
            self._queue.add(service_key(service), Priority.LOW)

    def on_balances_unknown(self) -> None:
        """The feed is silent: the accounts say so; their services stay as they are."""
        log.warning("balances.unknown", silent_seconds=round(self._balances.age(), 1))
        for account in list(self._cache.accounts):
            self._queue.add(account_key(account), Priority.LOW)

    def on_quota(self, quota: QuotaBalance, turned: bool) -> None:
        """A free quota moved: at once where it decides about its services, otherwise as a figure."""
        rest = 0.0 if turned else self._figures_seconds
        self.enqueue(requests_for_quota(self._cache, quota.account, quota.model, rest))

    def on_reservation(self, service: ObjectKey) -> None:
        """A reservation of a service is another than before."""
        self._queue.add(service_key(service))

    def on_ledger_reset(self) -> None:
        """The ledger lacks what came after its backup: it is told everything again, the top-ups as well."""
        self._overdue.clear()
        self._ledger_sync.forget_all()
        self.enqueue(mark_all_unverified(self._cache, self._balances))

    def enqueue(self, work: Iterable[Request]) -> None:
        """Ask for these passes."""
        for item in work:
            if item.delay:
                self._queue.add_after(item.key, item.delay, item.priority)
            else:
                self._queue.add(item.key, item.priority)

    def enqueue_all(self) -> None:
        """Look at everything, single-mindedly: after taking the Lease, and after each sweep."""
        self.enqueue(requests_for_all(self._cache, self._entitlements.services()))
