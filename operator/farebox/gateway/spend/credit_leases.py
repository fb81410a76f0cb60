"""Money held before calls, for accounts that must never fall below their credit line (B17, Hard).

The ledger gives this gateway a budget of an account (`ledger/booking/credit_leases.py`); every call that is
admitted holds the most that it can cost of it, until the ledger has charged the call or it is known to cost
nothing. So what all gateways hold together is never more than there is, whatever they do not know of each
other.

It decides nothing about calls, and never holds what the ledger has not granted.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import structlog

from farebox.domain.billing.money import MAX_NANO, Nano
from farebox.domain.keys import ObjectKey
from farebox.errors import LedgerError
from farebox.gateway.spend.tracker import LOST_SECONDS
from farebox.meterapi.types import Budget, BudgetClaim

SPARE_CALLS: Final = 8
"""A claim asks for so many more calls like the one that needs it."""
DENIED_SECONDS: Final = 0.05
"""After the ledger had not enough it is not asked again for so long: a crowd would only hear it again."""
IDLE_SECONDS: Final = 2.0
"""What is to spare is given back when nobody held anything for so long: another gateway may need it."""
REFRESH_SECONDS: Final = 600.0
"""A budget is claimed anew so often, well before it ends."""

Claim = Callable[[BudgetClaim], Awaitable[Budget]]
_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Purse:
    """One account's budget, in nano-units. `granted` and `spent` count up; calls wait for `wanted`."""

    granted: int = 0
    spent: int = 0
    held: int = 0
    wanted: int = 0
    claimed_at: float = float("-inf")
    denied_at: float = float("-inf")
    used_at: float = float("-inf")
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def left(self) -> int:
        """What a call can hold now."""
        return self.granted - self.spent - self.held


class Budgets:
    """What this gateway may spend. Make it in a running event loop; `run` keeps it fresh.

    Args:
        source: names this gateway process for ever, as in its usage events: no two processes share one.
        claim: asks the ledger.
        clock: monotonic seconds.
        call_seconds: no call takes longer.
    """

    def __init__(
        self,
        source: str,
        claim: Claim,
        clock: Callable[[], float] = time.monotonic,
        call_seconds: float = 3600.0,
    ) -> None:
        self.source = source
        self.call_seconds = call_seconds
        self._claim = claim
        self._clock = clock
        self._purses: defaultdict[ObjectKey, _Purse] = defaultdict(_Purse)
        self._holds: dict[str, tuple[ObjectKey, int, float]] = {}

    async def hold(self, request_id: str, account: ObjectKey, amount: Nano) -> bool:
        """Hold the most that a call can cost; False if the account has not that much.

        Raises:
            LedgerUnavailable: the ledger cannot be asked now.
        """
        purse = self._purses[account]
        if purse.left < amount and not await self._get(account, purse, amount):
            return False
        purse.held += amount
        purse.used_at = self._clock()
        self._holds[request_id] = (account, amount, purse.used_at)
        return True

    def settle(self, request_ids: Iterable[str], budgets: Iterable[Budget] = ()) -> None:
        """These calls are charged, or cost nothing: what they held is free again.

        `budgets` are the ledger's, as it answered to the usage; taken in the same moment, so nothing counts
        neither as held nor as spent.
        """
        for request_id in request_ids:
            found = self._holds.pop(request_id, None)
            if found is not None:
                account, amount, _ = found
                self._purses[account].held -= amount
        for budget in budgets:
            self._hear(budget)

    def ended(self, request_id: str) -> None:
        """A call is to be charged: it holds what it does until then, however long the ledger is away."""
        found = self._holds.get(request_id)
        if found is not None:
            self._holds[request_id] = (found[0], found[1], float("inf"))

    def forget(self) -> None:
        """The ledger is another one, or an older one: what it granted counts no more. Holds stay."""
        for purse in self._purses.values():
            purse.granted = purse.spent = 0
            purse.claimed_at = purse.denied_at = float("-inf")

    def holds(self, request_id: str) -> bool:
        """Whether a call holds money."""
        return request_id in self._holds

    @property
    def open_holds(self) -> int:
        """How many calls hold money."""
        return len(self._holds)

    async def run(self, seconds: float = 1.0) -> None:
        """Give back what nobody needs, and keep what is needed, for ever."""
        while True:
            await asyncio.sleep(seconds)
            now = self._clock()
            self._forget_lost(now)
            for account, purse in list(self._purses.items()):
                idle = purse.left > 0 and now - purse.used_at > IDLE_SECONDS
                needed = purse.held > 0 or purse.granted > purse.spent
                stale = needed and now - purse.claimed_at > REFRESH_SECONDS
                if idle or stale:
                    await self._try(account, purse, spare=0 if idle else max(0, purse.left))

    def _forget_lost(self, now: float) -> None:
        """Calls whose end will never be told hold nothing."""
        lost_since = now - self.call_seconds - LOST_SECONDS
        lost = [call for call, (_, _, since) in self._holds.items() if since < lost_since]
        if lost:
            _log.warning("holds.of_lost_calls", calls=len(lost))
            self.settle(lost)

    async def close(self) -> None:
        """Give everything back that no running call holds."""
        for account, purse in list(self._purses.items()):
            if purse.left > 0:
                await self._try(account, purse, spare=0)

    async def _try(self, account: ObjectKey, purse: _Purse, spare: int) -> None:
        async with purse.lock:
            try:
                await self._ask(account, purse, spare)
            except LedgerError as error:
                _log.warning("budget.not_claimed", account=str(account), error=str(error))

    async def _get(self, account: ObjectKey, purse: _Purse, amount: int) -> bool:
        """Claim for a call; callers that wait together are claimed for together."""
        purse.wanted += amount
        try:
            async with purse.lock:
                if purse.left < amount and self._clock() - purse.denied_at > DENIED_SECONDS:
                    wanted = purse.wanted + SPARE_CALLS * amount
                    if not await self._ask(account, purse, wanted):
                        purse.denied_at = self._clock()
                return purse.left >= amount
        finally:
            purse.wanted -= amount

    async def _ask(self, account: ObjectKey, purse: _Purse, spare: int) -> bool:
        """Set the budget to what is held and `spare` more; whether there was as much."""
        claimed = min(purse.held + spare, MAX_NANO)
        # What may be given back must not be held by anybody while the ledger is asked.
        purse.granted = min(purse.granted, purse.spent + claimed)
        budget = await self._claim(BudgetClaim(self.source, account, Nano(claimed)))
        purse.claimed_at = self._clock()
        purse.granted = budget.granted
        self._hear(budget)
        return budget.granted - budget.spent >= claimed

    def _hear(self, budget: Budget) -> None:
        purse = self._purses.get(budget.account)
        if purse is not None:
            purse.spent = max(purse.spent, budget.spent)
