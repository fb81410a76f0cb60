"""Money held before calls, for accounts that must never fall below their credit line (B17, Hard).

The ledger gives this gateway a lease of an account (`ledger/booking/credit_leases.py`); every call that is
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
from farebox.meterapi.types import CreditLease, CreditLeaseRequest

SPARE_CALLS: Final = 8
"""A claim asks for so many more calls like the one that needs it."""
DENIED_SECONDS: Final = 0.05
"""After the ledger had not enough it is not asked again for so long: a crowd would only hear it again."""
IDLE_SECONDS: Final = 2.0
"""What is to spare is given back when nobody held anything for so long: another gateway may need it."""
REFRESH_SECONDS: Final = 600.0
"""A lease is claimed anew so often, well before it ends."""

RequestLease = Callable[[CreditLeaseRequest], Awaitable[CreditLease]]
_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Lease:
    """One account's lease, in nano-units. `granted` and `spent` count up; calls wait for `wanted`."""

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


class CreditLeases:
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
        claim: RequestLease,
        clock: Callable[[], float] = time.monotonic,
        call_seconds: float = 3600.0,
    ) -> None:
        self.source = source
        self.call_seconds = call_seconds
        self._claim = claim
        self._clock = clock
        self._spends: defaultdict[ObjectKey, _Lease] = defaultdict(_Lease)
        self._holds: dict[str, tuple[ObjectKey, int, float]] = {}

    async def hold(self, request_id: str, account: ObjectKey, amount: Nano) -> bool:
        """Hold the most that a call can cost; False if the account has not that much.

        Raises:
            LedgerUnavailable: the ledger cannot be asked now.
        """
        spend = self._spends[account]
        if spend.left < amount and not await self._get(account, spend, amount):
            return False
        spend.held += amount
        spend.used_at = self._clock()
        self._holds[request_id] = (account, amount, spend.used_at)
        return True

    def release(self, request_ids: Iterable[str], leases: Iterable[CreditLease] = ()) -> None:
        """These calls are charged, or cost nothing: what they held is free again.

        `leases` are the ledger's, as it answered to the usage; taken in the same moment, so nothing counts
        neither as held nor as spent.
        """
        for request_id in request_ids:
            found = self._holds.pop(request_id, None)
            if found is not None:
                account, amount, _ = found
                self._spends[account].held -= amount
        for lease in leases:
            self._update(lease)

    def ended(self, request_id: str) -> None:
        """A call is to be charged: it holds what it does until then, however long the ledger is away."""
        found = self._holds.get(request_id)
        if found is not None:
            self._holds[request_id] = (found[0], found[1], float("inf"))

    def forget(self) -> None:
        """The ledger is another one, or an older one: what it granted counts no more. Holds stay."""
        for spend in self._spends.values():
            spend.granted = spend.spent = 0
            spend.claimed_at = spend.denied_at = float("-inf")

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
            for account, spend in list(self._spends.items()):
                idle = spend.left > 0 and now - spend.used_at > IDLE_SECONDS
                needed = spend.held > 0 or spend.granted > spend.spent
                stale = needed and now - spend.claimed_at > REFRESH_SECONDS
                if idle or stale:
                    await self._try(account, spend, spare=0 if idle else max(0, spend.left))

    def _forget_lost(self, now: float) -> None:
        """Calls whose end will never be told hold nothing."""
        lost_since = now - self.call_seconds - LOST_SECONDS
        lost = [call for call, (_, _, since) in self._holds.items() if since < lost_since]
        if lost:
            _log.warning("holds.of_lost_calls", calls=len(lost))
            self.release(lost)

    async def close(self) -> None:
        """Give everything back that no running call holds."""
        for account, spend in list(self._spends.items()):
            if spend.left > 0:
                await self._try(account, spend, spare=0)

    async def _try(self, account: ObjectKey, spend: _Lease, spare: int) -> None:
        async with spend.lock:
            try:
                await self._ask(account, spend, spare)
            except LedgerError as error:
                _log.warning("budget.not_claimed", account=str(account), error=str(error))

    async def _get(self, account: ObjectKey, spend: _Lease, amount: int) -> bool:
        """Claim for a call; callers that wait together are claimed for together."""
        spend.wanted += amount
        try:
            async with spend.lock:
                if spend.left < amount and self._clock() - spend.denied_at > DENIED_SECONDS:
                    wanted = spend.wanted + SPARE_CALLS * amount
                    if not await self._ask(account, spend, wanted):
                        spend.denied_at = self._clock()
                return spend.left >= amount
        finally:
            spend.wanted -= amount

    async def _ask(self, account: ObjectKey, spend: _Lease, spare: int) -> bool:
        """Set the lease to what is held and `spare` more; whether there was as much."""
        claimed = min(spend.held + spare, MAX_NANO)
        # What may be given back must not be held by anybody while the ledger is asked.
        spend.granted = min(spend.granted, spend.spent + claimed)
        lease = await self._claim(CreditLeaseRequest(self.source, account, Nano(claimed)))
        spend.claimed_at = self._clock()
        spend.granted = lease.granted
        self._update(lease)
        return lease.granted - lease.spent >= claimed

    def _update(self, lease: CreditLease) -> None:
        spend = self._spends.get(lease.account)
        if spend is not None:
            spend.spent = max(spend.spent, lease.spent)
