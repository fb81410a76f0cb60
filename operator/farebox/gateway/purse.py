"""What accounts can still spend, as this replica knows it: the meter's word, less what it admitted since.

A call's commitment counts from its admission until the ledger's own figures have its charge in them. So a
charge is never missing in between; for a moment it may count twice. What Hard accounts must have in full is
held elsewhere, in `budgets.py`. No I/O: `feed.py` tells it what the meter says, the handler what is admitted.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar

from farebox.domain.caller import FreeTokens
from farebox.domain.facts import UNKNOWN, Unknown
from farebox.domain.keys import ObjectKey
from farebox.domain.money import Nano, available
from farebox.ledger.port import AccountBalance, QuotaBalance

UNACKNOWLEDGED_SECONDS: Final = 60.0
"""Usage that nobody acknowledged for so long is taken as charged: its commitment must not stay."""
OPEN_SECONDS: Final = 3900.0
"""A call that tells no usage for so long is lost (its Envoy was killed, say), as no call takes so long:
`EnvoySettings.call_seconds`. What was kept for it must not stay for ever."""

K = TypeVar("K")
_Pool = tuple[ObjectKey, str]
"""An account's free tokens for a model."""


@dataclass(slots=True)
class _Commitment:
    account: ObjectKey
    amount: int
    model: str
    tokens: int
    settled: bool = False
    acknowledged: bool = False


@dataclass
class Purse:
    """Balances and free quotas, with what is committed of them.

    Args:
        max_age: seconds of silence after which nothing may be spent on the meter's word any more.
        clock: monotonic seconds.
    """

    max_age: float
    clock: Callable[[], float] = time.monotonic
    heard_at: float | None = None
    complete: bool = False
    _balances: dict[ObjectKey, AccountBalance] = field(default_factory=dict)
    _quotas: dict[_Pool, QuotaBalance] = field(default_factory=dict)
    _calls: dict[str, _Commitment] = field(default_factory=dict)
    _money: dict[ObjectKey, int] = field(default_factory=dict)
    _tokens: dict[_Pool, int] = field(default_factory=dict)
    _opened: deque[tuple[float, str]] = field(default_factory=deque)
    _settled: deque[tuple[float, str]] = field(default_factory=deque)
    _acknowledged: deque[tuple[float, str]] = field(default_factory=deque)
    _charged: deque[tuple[int, str]] = field(default_factory=deque)
    _read_to: int = 0
    on_acknowledged: Callable[[], None] = lambda: None

    @property
    def fresh(self) -> bool:
        """Whether the feed was read to its end once, and heard recently enough."""
        return self.complete and self.heard_at is not None and self.clock() - self.heard_at < self.max_age

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

    def commit(self, call: str, account: ObjectKey, amount: int, model: str, tokens: int) -> None:
        """Count money and free tokens as spent by a call that is on its way."""
        assert call not in self._calls, "each call has an id of its own"
        self._calls[call] = _Commitment(account, amount, model, tokens)
        self._count(account, amount, model, tokens)
        self._opened.append((self.clock(), call))

    def release(self, call: str) -> None:
        """The call is not made, or used nothing. One that is not known is fine."""
        commitment = self._calls.pop(call, None)
        if commitment is not None:
            self._count(commitment.account, -commitment.amount, commitment.model, -commitment.tokens)

    def settle(self, call: str, amount: int, tokens: int) -> None:
        """The call has ended: the ledger is going to charge it so much.

        Its tokens count on the free quota if it was to be paid by that.
        """
        commitment = self._calls.get(call)
        if commitment is None or commitment.settled:
            return
        tokens = tokens if commitment.tokens else 0
        self._count(
            commitment.account, amount - commitment.amount, commitment.model, tokens - commitment.tokens
        )
        commitment.amount, commitment.tokens, commitment.settled = amount, tokens, True
        self._settled.append((self.clock(), call))

    def acknowledge(self, calls: Iterable[str], sequence: int = 0) -> None:
        """The ledger has committed the usage of these calls.

        Args:
            sequence: their charges are in the feed when it was read so far; 0: nobody said, and what is asked
                for from now on has them.
        """
        now = self.clock()
        for call in calls:
            commitment = self._calls.get(call)
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

    def hear(
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
        self.heard_at = self.clock()
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
            self.release(self._charged.popleft()[1])

    def _let_go(self, asked_at: float) -> None:
        """Drop what the ledger's figures have in them by now, and what will never be heard of again."""
        for call in _older(self._acknowledged, asked_at):
            self.release(call)
        for call in _older(self._settled, asked_at - UNACKNOWLEDGED_SECONDS):
            self.release(call)
        for call in _older(self._opened, asked_at - OPEN_SECONDS):
            self.release(call)

    def _count(self, account: ObjectKey, amount: int, model: str, tokens: int) -> None:
        _add(self._money, account, amount)
        _add(self._tokens, (account, model), tokens)


def _older(queue: deque[tuple[float, str]], before: float) -> Iterator[str]:
    """Take from a queue what was put there before a moment."""
    while queue and queue[0][0] < before:
        yield queue.popleft()[1]


def _add(counts: dict[K, int], key: K, change: int) -> None:
    """Change a count; those that are zero are not kept."""
    if total := counts.get(key, 0) + change:
        counts[key] = total
    else:
        counts.pop(key, None)
