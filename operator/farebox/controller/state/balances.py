"""The operator's copy of the ledger's balances, and whether it can be trusted now.

When the feed was silent for `max_age` seconds, every balance is unknown, and an unknown balance stops and
starts nothing. No I/O: sources/ledger_feed.py fills it.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from farebox.api import BillingAccount
from farebox.domain.billing.money import Nano, available, is_overdue, parse_amount
from farebox.domain.facts import UNKNOWN, Unknown
from farebox.domain.keys import ObjectKey
from farebox.meterapi.types import AccountBalance, AccountRecord


@dataclass
class Balances:
    """Balances by account.

    Args:
        max_age: seconds after which a silent feed makes them unknown.
        clock: monotonic seconds.
        updated_at: when the feed last answered, on `clock`.
        complete: whether the feed was read to its end once.
    """

    max_age: float
    clock: Callable[[], float] = time.monotonic
    updated_at: float | None = None
    complete: bool = False
    _accounts: dict[ObjectKey, AccountBalance] = field(default_factory=dict)
    _unverified: dict[ObjectKey, set[ObjectKey]] = field(default_factory=dict)
    _marked_at: dict[ObjectKey, int] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether the feed is alive and was read to its end once."""
        return self.complete and self.updated_at is not None and self.age() < self.max_age

    def age(self) -> float:
        """Return the seconds since the feed last answered; infinite before the first answer."""
        return float("inf") if self.updated_at is None else self.clock() - self.updated_at

    def of(self, account: ObjectKey, at_least: int) -> AccountBalance | Unknown:
        """Return the account's balance, unless it is unverified or older than the sequence `at_least`."""
        if not self.known or account in self._unverified or self.behind(account, at_least):
            return UNKNOWN
        return self._accounts.get(account, UNKNOWN)

    def update(self, accounts: Iterable[AccountBalance], complete: bool) -> list[ObjectKey]:
        """Apply a page of the feed; returns the accounts that changed."""
        self.updated_at = self.clock()
        changed = [account.account for account in accounts if self.update_account(account)]
        self.complete = self.complete or complete
        return changed

    def update_account(self, account: AccountBalance) -> bool:
        """Apply one balance, from the feed or from a top-up's receipt; False when it is not newer."""
        known = self._accounts.get(account.account)
        if known is not None and known.sequence >= account.sequence:
            return False
        self._accounts[account.account] = account
        return True

    def forget(self) -> None:
        """Drop everything: the ledger was replaced, or restored from an older copy."""
        self._accounts.clear()
        self._marked_at.clear()
        self.complete = False

    def behind(self, account: ObjectKey, reported: int) -> bool:
        """Return whether the ledger's sequence is lower than the one that the account's status reports.

        Then the ledger was restored from a backup while no operator was running. False once the account was
        marked as unverified for it.
        """
        balance = self._accounts.get(account)
        return (
            self.known
            and balance is not None
            and balance.sequence < reported
            and self._marked_at.get(account, 0) < reported
        )

    def mark_unverified(self, account: ObjectKey, topups: Iterable[ObjectKey], reported: int) -> None:
        """Make a balance unknown until the ledger has confirmed these top-ups.

        Args:
            reported: the sequence in the account's status, for which the account is no longer `behind`.
        """
        self._marked_at[account] = max(reported, self._marked_at.get(account, 0))
        if waiting := set(topups):
            self._unverified.setdefault(account, set()).update(waiting)

    @property
    def any_unverified(self) -> bool:
        """Whether any balance waits for top-ups."""
        return bool(self._unverified)

    def is_unverified(self, account: ObjectKey, topup: ObjectKey) -> bool:
        """Return whether the balance waits for this top-up."""
        return topup in self._unverified.get(account, ())

    def confirm(self, topup: ObjectKey) -> list[ObjectKey]:
        """Record that the ledger has a top-up, or never will; returns accounts that waited for it alone."""
        confirmed = [account for account, waiting in self._unverified.items() if waiting == {topup}]
        for account in confirmed:
            del self._unverified[account]
        for waiting in self._unverified.values():
            waiting.discard(topup)
        return confirmed


def account_record(key: ObjectKey, account: BillingAccount) -> AccountRecord:
    """Return what the ledger needs to know of an account, as its spec is now."""
    return AccountRecord(key, account.spec.currency, parse_amount(account.spec.credit_limit))


def known_balance(balances: Balances, key: ObjectKey, account: BillingAccount) -> AccountBalance | Unknown:
    """Return the ledger's balance of an account, if it can be trusted now.

    A balance in another currency belongs to an earlier account of the same name. The ledger refuses the new
    account then (CurrencyChanged, B11), so its balance is unknown.
    """
    balance = balances.of(key, account.status.ledger_sequence or 0)
    if balance is UNKNOWN or balance.currency != account.spec.currency:
        return UNKNOWN
    return balance


def available_amount(balances: Balances, key: ObjectKey, account: BillingAccount) -> Nano | Unknown:
    """Return what an account can spend: the ledger's balance plus the credit limit in its spec."""
    balance = known_balance(balances, key, account)
    if balance is UNKNOWN:
        return UNKNOWN
    return available(balance.balance, parse_amount(account.spec.credit_limit))


def account_overdue(balances: Balances, key: ObjectKey, account: BillingAccount) -> bool | Unknown:
    """Return whether an account is overdue (B3), by its balance and its spec."""
    balance = known_balance(balances, key, account)
    if balance is UNKNOWN:
        return UNKNOWN
    return is_overdue(balance.balance, parse_amount(account.spec.credit_limit))
