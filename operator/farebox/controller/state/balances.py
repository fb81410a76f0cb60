"""The operator's copy of the ledger's balances, and whether it can be trusted now.

A feed that was not heard for `max_age` seconds makes every balance unknown, which stops and starts nothing.
No I/O: `feed.py` fills it.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from farebox.domain.facts import UNKNOWN, Unknown
from farebox.domain.keys import ObjectKey
from farebox.meterapi.types import AccountBalance


@dataclass
class Balances:
    """Balances by account.

    Args:
        max_age: seconds after which silence makes them unknown.
        clock: monotonic seconds.
    """

    max_age: float
    clock: Callable[[], float] = time.monotonic
    updated_at: float | None = None
    complete: bool = False
    _accounts: dict[ObjectKey, AccountBalance] = field(default_factory=dict)
    _doubts: dict[ObjectKey, set[ObjectKey]] = field(default_factory=dict)
    _doubted_at: dict[ObjectKey, int] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether the feed is alive and was read to its end once."""
        return self.complete and self.updated_at is not None and self.age() < self.max_age

    def age(self) -> float:
        """Seconds since the feed was heard; infinite before the first time."""
        return float("inf") if self.updated_at is None else self.clock() - self.updated_at

    def of(self, account: ObjectKey, at_least: int) -> AccountBalance | Unknown:
        """The account's balance, unless it is not known now; one `behind` what was reported is not."""
        if not self.known or account in self._doubts or self.behind(account, at_least):
            return UNKNOWN
        return self._accounts.get(account, UNKNOWN)

    def update(self, accounts: Iterable[AccountBalance], complete: bool) -> list[ObjectKey]:
        """Take in a page of the feed; returns the accounts that changed."""
        self.updated_at = self.clock()
        changed = [account.account for account in accounts if self.update_account(account)]
        self.complete = self.complete or complete
        return changed

    def update_account(self, account: AccountBalance) -> bool:
        """Take in one account, unless something newer is known. A top-up's receipt comes this way too."""
        known = self._accounts.get(account.account)
        if known is not None and known.sequence >= account.sequence:
            return False
        self._accounts[account.account] = account
        return True

    def forget(self) -> None:
        """The ledger is another one, or an older one: nothing of what was heard counts."""
        self._accounts.clear()
        self._doubted_at.clear()
        self.complete = False

    def behind(self, account: ObjectKey, reported: int) -> bool:
        """Whether the ledger has the account as of before the sequence number that its status reports.

        It was restored from a backup then, while nobody was there to hear of it. Not asked again once the
        account was doubted for it.
        """
        balance = self._accounts.get(account)
        return (
            self.known
            and balance is not None
            and balance.sequence < reported
            and self._doubted_at.get(account, 0) < reported
        )

    def mark_unverified(self, account: ObjectKey, topups: Iterable[ObjectKey], reported: int) -> None:
        """Make a balance unknown until these top-ups are in it; then it is not behind `reported` any more."""
        self._doubted_at[account] = max(reported, self._doubted_at.get(account, 0))
        if waiting := set(topups):
            self._doubts.setdefault(account, set()).update(waiting)

    @property
    def any_unverified(self) -> bool:
        """Whether any balance waits for top-ups."""
        return bool(self._doubts)

    def is_unverified(self, account: ObjectKey, topup: ObjectKey) -> bool:
        """Whether the balance waits for a top-up."""
        return topup in self._doubts.get(account, ())

    def confirm(self, topup: ObjectKey) -> list[ObjectKey]:
        """A top-up is in its balance, or never will be; returns the accounts that waited for it alone."""
        settled = [account for account, waiting in self._doubts.items() if waiting == {topup}]
        for account in settled:
            del self._doubts[account]
        for waiting in self._doubts.values():
            waiting.discard(topup)
        return settled
