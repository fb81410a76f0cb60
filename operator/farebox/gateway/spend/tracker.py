"""The spend tracker: what accounts can still spend, by the ledger's figures less this replica's own calls.

An authorization counts from the admission of a call until the ledger's figures include its charge. So a
charge is never missing in between, and may briefly count twice. `credit_leases` holds the maximum cost for
Hard accounts. No I/O: `feed` reports the ledger's figures, the handler and the settlement report calls.
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
"""A call without usage is lost this long after `call_seconds`, the maximum duration of a call, for example
because its Envoy was killed. Its reservations are then released."""

K = TypeVar("K")
_Pool = tuple[ObjectKey, str]
"""An account and a model: the key of a free quota."""


class _Authorization(Struct):
    account: ObjectKey
    amount: int
    model: str
    tokens: int
    since: float
    acknowledged: bool = False


@dataclass
class SpendTracker:
    """Balances and free quotas, and the authorizations that the ledger's figures do not include yet.

    Args:
        max_age: seconds after which the ledger's last figures are too old to spend on.
        clock: monotonic seconds.
        call_seconds: the maximum duration of a call.
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
    _sequence: int = 0
    on_acknowledged: Callable[[], None] = lambda: None

    @property
    def lost_after(self) -> float:
        """Seconds after which a call without usage is lost."""
        return self.call_seconds + LOST_SECONDS

    @property
    def fresh(self) -> bool:
        """Whether the feed was read completely once, and responded recently enough."""
        return self.complete and self.updated_at is not None and self.clock() - self.updated_at < self.max_age

    def available(self, account: ObjectKey) -> Nano | Unknown:
        """The money that the account can spend."""
        balance = self._balances.get(account)
        if balance is None:
            return UNKNOWN
        left = available(balance.balance, balance.credit_limit) - self._money.get(account, 0)
        return Nano(left)

    def free_tokens(self, account: ObjectKey, model: str) -> FreeTokens | Unknown:
        """The rest of the account's free quota for a model."""
        quota = self._quotas.get((account, model))
        if quota is None:
            return UNKNOWN
        return FreeTokens(quota.total - quota.used - self._tokens.get((account, model), 0), quota.expires_at)

    def authorize(self, call: str, account: ObjectKey, amount: int, model: str, tokens: int) -> None:
        """Count money and free tokens as spent by an admitted call."""
        assert call not in self._running, "ids of calls are unique"
        self._running[call] = _Authorization(account, amount, model, tokens, self.clock())
        self._count(account, amount, model, tokens)

    def void(self, call: str) -> None:
        """Drop the authorization of a call that is not made or costs nothing. Unknown ids are ignored."""
        authorization = self._running.pop(call, None) or self._ended.pop(call, None)
        if authorization is not None:
            self._count(
                authorization.account, -authorization.amount, authorization.model, -authorization.tokens
            )

    def is_authorized(self, call: str) -> bool:
        """Whether the call is authorized and its end is not reported yet."""
        return call in self._running

    def capture(self, call: str, amount: int, tokens: int) -> None:
        """Replace the authorization of an ended call by its actual charge until the ledger reports it.

        Its tokens count against the free quota if that was authorized to pay for it.
        """
        authorization = self._running.pop(call, None)
        if authorization is None:
            return
        tokens = tokens if authorization.tokens else 0
        self._count(
            authorization.account,
            amount - authorization.amount,
            authorization.model,
            tokens - authorization.tokens,
        )
        authorization.amount, authorization.tokens = amount, tokens
        if amount or tokens:
            self._ended[call] = authorization

    def acknowledge(self, calls: Iterable[str], sequence: int = 0) -> None:
        """The ledger has charged these calls.

        Args:
            sequence: the sequence of the feed that includes the charges; 0: unknown, so every page requested
                from now on includes them.
        """
        now = self.clock()
        for call in calls:
            authorization = self._ended.get(call) or self._running.get(call)
            if authorization is None or authorization.acknowledged:
                continue
            authorization.acknowledged = True
            if sequence:
                self._charged.append((sequence, call))
            else:
                self._acknowledged.append((now, call))
        self._release_included()
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
        """Apply a page of the feed.

        Args:
            asked_at: the time of the request, by `clock`.
            sequence: the sequence up to which the feed is read with this page.
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
        self._sequence = max(self._sequence, sequence)
        self._release_included()
        if complete:
            self._release_older(asked_at)

    def forget(self) -> None:
        """Drop all figures, because the ledger was replaced or restored. Authorizations stay."""
        self._balances.clear()
        self._quotas.clear()
        self.complete = False
        self._sequence = 0
        # The sequences of the old ledger have no meaning; pages requested from now on include the charges.
        self._acknowledged.extend((self.clock(), call) for _, call in self._charged)
        self._charged.clear()

    def _release_included(self) -> None:
        """Release authorizations that the reported figures already include."""
        while self._charged and self._charged[0][0] <= self._sequence:
            self.void(self._charged.popleft()[1])

    def _release_older(self, asked_at: float) -> None:
        """Release authorizations acknowledged before `asked_at`, and those of lost calls."""
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
    """Change a count; zero counts are removed."""
    if total := counts.get(key, 0) + change:
        counts[key] = total
    else:
        counts.pop(key, None)
