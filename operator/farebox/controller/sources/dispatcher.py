"""What comes in: changes from the watches and news of the ledger, into the cache and as keys into the queue.

The one place from which keys are queued, but for what a pass asks of its own accord. It decides nothing and
never waits.
"""

from collections.abc import Iterable
from typing import Any

import structlog

from farebox.controller.keys import Kind, account_key, service_key
from farebox.controller.queue import Lane, WorkQueue
from farebox.controller.reconcile.gather import known_balance
from farebox.controller.reconcile.topups import doubt_balances
from farebox.controller.sources.mapping import Work, after_balance, after_quota, concerned, edited, everything
from farebox.controller.state.balances import Balances
from farebox.controller.state.cache import Cache, Change, is_farebox_backend
from farebox.controller.state.entitlements import Terms
from farebox.controller.state.ledger_sync import Records
from farebox.controller.state.shared_backend_demand import Demand
from farebox.domain.billing.money import is_overdue, parse_amount
from farebox.domain.facts import UNKNOWN
from farebox.domain.keys import ObjectKey
from farebox.kube.names import key_of
from farebox.meterapi.types import AccountBalance, QuotaBalance

log = structlog.get_logger(__name__)
_FIGURES_REST_SECONDS = 0.2


class Intake:
    """Takes in what happened, and asks for passes over what it concerns.

    Args:
        figures_seconds: how long a free quota rests that moved as a figure alone.
    """

    def __init__(
        self,
        cache: Cache,
        queue: WorkQueue,
        balances: Balances,
        terms: Terms,
        demand: Demand,
        records: Records,
        figures_seconds: float,
    ) -> None:
        self._cache = cache
        self._queue = queue
        self._balances = balances
        self._terms = terms
        self._demand = demand
        self._records = records
        self._figures_seconds = figures_seconds
        self._overdue: dict[ObjectKey, bool] = {}

    def observe(self, kind: Kind, type_: str, raw: dict[str, Any]) -> None:
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
            self.changed(change)

    def changed(self, change: Change[Any]) -> None:
        """The cache has it already."""
        if change.kind is Kind.ACCOUNT and edited(change.old, change.new):
            # A credit limit turns the account's state as a balance does, so the next balance is news again.
            self._overdue.pop(change.key, None)
        self.enqueue(concerned(self._cache, change))

    def balance_learned(self, balance: AccountBalance) -> None:
        """A balance that came with a receipt."""
        if self._balances.learn(balance):
            self.balance_changed(balance.account)

    def balance_changed(self, account: ObjectKey) -> None:
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
        self.enqueue(after_balance(self._cache, account))

    def balance_settled(self, account: ObjectKey) -> None:
        """A balance that was in doubt can be trusted: everything on the account is looked at anew."""
        self._overdue.pop(account, None)
        self.balance_changed(account)

    def balances_back(self) -> None:
        """Balances are known again: what changed meanwhile, or waited for them, is looked at."""
        for account in list(self._cache.accounts):
            self._queue.add(account_key(account), Lane.BULK)
            self.balance_changed(account)
        for service in self._terms.services():
            self._queue.add(service_key(service), Lane.BULK)
        for service in list(self._demand.held):
            self._queue.add(service_key(service), Lane.BULK)

    def balances_lost(self) -> None:
        """The feed is silent: the accounts say so; their services stay as they are."""
        log.warning("balances.unknown", silent_seconds=round(self._balances.age(), 1))
        for account in list(self._cache.accounts):
            self._queue.add(account_key(account), Lane.BULK)

    def quota_changed(self, quota: QuotaBalance, turned: bool) -> None:
        """A free quota moved: at once where it decides about its services, otherwise as a figure."""
        rest = 0.0 if turned else self._figures_seconds
        self.enqueue(after_quota(self._cache, quota.account, quota.model, rest))

    def reservation_changed(self, service: ObjectKey) -> None:
        """A reservation of a service is another than before."""
        self._queue.add(service_key(service))

    def ledger_reset(self) -> None:
        """The ledger lacks what came after its backup: it is told everything again, the top-ups as well."""
        self._overdue.clear()
        self._records.forget_all()
        self.enqueue(doubt_balances(self._cache, self._balances))

    def enqueue(self, work: Iterable[Work]) -> None:
        """Ask for these passes."""
        for item in work:
            if item.seconds:
                self._queue.add_after(item.key, item.seconds, item.lane)
            else:
                self._queue.add(item.key, item.lane)

    def enqueue_all(self) -> None:
        """Look at everything, single-mindedly: after taking the Lease, and after each sweep."""
        self.enqueue(everything(self._cache, self._terms.services()))
