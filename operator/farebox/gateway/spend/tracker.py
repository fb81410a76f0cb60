"""What accounts can still spend, as this replica knows it: the meter's word, less what it admitted since.

A call's commitment counts from its admission until the ledger's own figures have its charge in them. So a
charge is never missing in between; for a moment it may count twice. What Hard accounts must have in full is
held elsewhere, in `leases.py`. No I/O: `feed.py` tells it what the meter says, the handler what is admitted.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final, TypeVar

from msgspec import Struct

from farebox.domain.admission.types import FreeTokens
from farebox.domain.billing.money import Nano, available
from farebox.domain.facts import UNKNOWN, Unknown
from farebox.domain.keys import ObjectKey
from farebox.meterapi.types import AccountBalance, QuotaBalance

LOST_SECONDS: Final = 300.0
"""A call that has told no usage so long after `call_seconds`, the most that a call may take, is lost, as its
Envoy was killed, say. What was kept for it must not stay for ever."""

K = TypeVar("K")
_Pool = tuple[ObjectKey, str]
"""An account's free tokens for a model."""


class _Authorization(Struct):
    account: ObjectKey
    amount: int
    model: str
    tokens: int
    since: float
    acknowledged: bool = False


@dataclass
class SpendTracker:
    """Balances and free quotas, with what is committed of them.

    Args:
        max_age: seconds of silence after which nothing may be spent on the meter's word any more.
        clock: monotonic seconds.
        call_seconds: no call takes longer.
    """

    max_age: float
    clock: Callable[[], float] = time.monotonic
    call_seconds: float = 3600.0
    updated_at: float | None = None
    complete: bool = False
    _balances: dict[ObjectKey, AccountBalance] = field(default_factory=dict)
    _quotas: dict[_Pool, QuotaBalance] = field(default_factory=dict)
    _running: dict[str, _Authorization] = field(default_factory=dict)
    _ended: dict[str, _Authorization] = field(default_factory=dict)
    _money: dict[ObjectKey, int] = field(default_factory=dict)
    _tokens: dict[_Pool, int] = field(default_factory=dict)
    _acknowledged: deque[tuple[float, str]] = field(default_factory=deque)
    _charged: deque[tuple[int, str]] = field(default_factory=deque)
    _read_to: int = 0
    on_acknowledged: Callable[[], None] = lambda: None

    @property
    def lost_after(self) -> float:
        """Seconds after which a call that told nothing of its end is lost."""
        return self.call_seconds + LOST_SECONDS

    @property
    def fresh(self) -> bool:
        """Whether the feed was read to its end once, and heard recently enough."""
        return self.complete and self.updated_at is not None and self.clock() - self.updated_at < self.max_age

    def available(self, account: ObjectKey) -> Nano | Unknown:
        """What the account can spend."""
        balance = self._balances.get(account)
        if balance is None:
            return UNKNOWN
        left = available(balance.balance, balance.credit_limit) - self._money.get(account, 0)
        return Nano(left)

    def free_tokens(self, account: ObjectKey, model: str) -> FreeTokens | Unknown:
        """What is left of the account's free quota for a model."""
        quota = self._quotas.get((account, model))
        if quota is None:
            return UNKNOWN
        return FreeTokens(quota.total - quota.used - self._tokens.get((account, model), 0), quota.expires_at)

    def authorize(self, call: str, account: ObjectKey, amount: int, model: str, tokens: int) -> None:
        """Count money and free tokens as spent by a call that is on its way."""
        assert call not in self._running, "each call has an id of its own"
        self._running[call] = _Authorization(account, amount, model, tokens, self.clock())
        self._count(account, amount, model, tokens)

    def void(self, call: str) -> None:
        """The call is not made, or used nothing. One that is not known is fine."""
        commitment = self._running.pop(call, None) or self._ended.pop(call, None)
        if commitment is not None:
            self._count(commitment.account, -commitment.amount, commitment.model, -commitment.tokens)

    def is_authorized(self, call: str) -> bool:
        """Whether it was committed, and nothing was heard of its end."""
        return call in self._running

    def capture(self, call: str, amount: int, tokens: int) -> None:
        """The call has ended: the ledger is going to charge it so much, however long it is away.

        Its tokens count on the free quota if it was to be paid by that.
        """
        commitment = self._running.pop(call, None)
        if commitment is None:
            return
        tokens = tokens if commitment.tokens else 0
        self._count(
            commitment.account, amount - commitment.amount, commitment.model, tokens - commitment.tokens
        )
        commitment.amount, commitment.tokens = amount, tokens
        if amount or tokens:
            self._ended[call] = commitment

    def acknowledge(self, calls: Iterable[str], sequence: int = 0) -> None:
        """The ledger has committed the usage of these calls.

        Args:
            sequence: their charges are in the feed when it was read so far; 0: nobody said, and what is asked
                for from now on has them.
        """
        now = self.clock()
        for call in calls:
            commitment = self._ended.get(call) or self._running.get(call)
            if commitment is None or commitment.acknowledged:
                continue
            commitment.acknowledged = True
            if sequence:
                self._charged.append((sequence, call))
            else:
                self._acknowledged.append((now, call))
        self._let_go_of_charged()
        if self._acknowledged or self._charged:
            self.on_acknowledged()

    def update(
        self,
        balances: Iterable[AccountBalance],
        quotas: Iterable[QuotaBalance],
        complete: bool,
        asked_at: float,
        sequence: int = 0,
    ) -> None:
        """Take in a page of the feed.

        Args:
            asked_at: when it was asked for, by `clock`.
            sequence: the feed is read so far with it.
        """
        self.updated_at = self.clock()
        for balance in balances:
            known = self._balances.get(balance.account)
            if known is None or balance.sequence >= known.sequence:
                self._balances[balance.account] = balance
        for quota in quotas:
            pool = (quota.account, quota.model)
            if pool not in self._quotas or quota.sequence >= self._quotas[pool].sequence:
                self._quotas[pool] = quota
        self.complete = self.complete or complete
        self._read_to = max(self._read_to, sequence)
        self._let_go_of_charged()
        if complete:
            self._let_go(asked_at)

    def forget(self) -> None:
        """The ledger is another one, or an older one: nothing of what it said counts. Commitments stay."""
        self._balances.clear()
        self._quotas.clear()
        self.complete = False
        self._read_to = 0
        # The numbers under which calls were charged mean nothing now; the figures asked for next have them.
        self._acknowledged.extend((self.clock(), call) for _, call in self._charged)
        self._charged.clear()

    def _let_go_of_charged(self) -> None:
        """Drop what the figures that were heard have in them: from the same moment on, so it counts once."""
        while self._charged and self._charged[0][0] <= self._read_to:
            self.void(self._charged.popleft()[1])

    def _let_go(self, asked_at: float) -> None:
        """Drop what the ledger's figures have in them by now, and calls that will never be heard of again."""
        while self._acknowledged and self._acknowledged[0][0] < asked_at:
            self.void(self._acknowledged.popleft()[1])
        lost_since = asked_at - self.lost_after
        for call, _ in list(takewhile(lambda entry: entry[1].since < lost_since, self._running.items())):
            self.void(call)

    def _count(self, account: ObjectKey, amount: int, model: str, tokens: int) -> None:
        if amount:
            _add(self._money, account, amount)
        if tokens:
            _add(self._tokens, (account, model), tokens)


def _add(counts: dict[K, int], key: K, change: int) -> None:
    """Change a count; those that are zero are not kept."""
    if total := counts.get(key, 0) + change:
        counts[key] = total
    else:
        counts.pop(key, None)
