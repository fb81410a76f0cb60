"""Credit leases: money held before calls of accounts that must not fall below their credit line (B17, Hard).

The ledger grants this gateway a lease on an account (`ledger/booking/credit_leases.py`). Every admitted call
holds its maximum cost from the lease, until the ledger has charged the call or it costs nothing. So all
gateways together never hold more than the account has, without knowing of each other.

This module makes no decisions about calls, and never holds what the ledger has not granted.
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
"""A request covers this many more calls like the one that needs it."""
DENIED_SECONDS: Final = 0.05
"""The pause after a denied request, so that waiting calls do not repeat it."""
IDLE_SECONDS: Final = 2.0
"""An unused lease is returned after this time, because another gateway may need it."""
REFRESH_SECONDS: Final = 600.0
"""The renewal interval of a lease, well before it expires."""

RequestLease = Callable[[CreditLeaseRequest], Awaitable[CreditLease]]
_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Lease:
    """One account's lease, in nano-units. `granted` and `spent` increase; calls wait for `wanted`."""

    granted: int = 0
    spent: int = 0
    held: int = 0
    wanted: int = 0
    requested_at: float = float("-inf")
    denied_at: float = float("-inf")
    used_at: float = float("-inf")
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def left(self) -> int:
        """The amount that a call can hold now."""
        return self.granted - self.spent - self.held


class CreditLeases:
    """The leases and holds of this gateway. Make it in a running event loop; `run` renews the leases.

    Args:
        source: the unique name of this gateway process, as in its usage events.
        request_lease: asks the ledger.
        clock: monotonic seconds.
        call_seconds: the maximum duration of a call.
    """

    def __init__(
        self,
        source: str,
        request_lease: RequestLease,
        clock: Callable[[], float] = time.monotonic,
        call_seconds: float = 3600.0,
    ) -> None:
        self.source = source
        self.call_seconds = call_seconds
        self._request_lease = request_lease
        self._clock = clock
        self._leases: defaultdict[ObjectKey, _Lease] = defaultdict(_Lease)
        self._holds: dict[str, tuple[ObjectKey, int, float]] = {}

    async def hold(self, request_id: str, account: ObjectKey, amount: Nano) -> bool:
        """Hold the maximum cost of a call; False if the account does not have it.

        Raises:
            LedgerUnavailable: the lease is too small, and the ledger is unreachable.
        """
        lease = self._leases[account]
        if lease.left < amount and not await self._enlarge(account, lease, amount):
            return False
        lease.held += amount
        lease.used_at = self._clock()
        self._holds[request_id] = (account, amount, lease.used_at)
        return True

    def release(self, request_ids: Iterable[str], leases: Iterable[CreditLease] = ()) -> None:
        """Release the holds of calls that are charged or cost nothing.

        `leases` is the ledger's state after the charges. It is applied in the same step, so money always
        counts as either held or spent.
        """
        for request_id in request_ids:
            found = self._holds.pop(request_id, None)
            if found is not None:
                account, amount, _ = found
                self._leases[account].held -= amount
        for granted in leases:
            self._update(granted)

    def ended(self, request_id: str) -> None:
        """Keep the hold of an ended call until it is charged, even if the ledger is unreachable for long."""
        found = self._holds.get(request_id)
        if found is not None:
            self._holds[request_id] = (found[0], found[1], float("inf"))

    def forget(self) -> None:
        """Drop all grants, because the ledger was replaced or restored. Holds stay."""
        for lease in self._leases.values():
            lease.granted = lease.spent = 0
            lease.requested_at = lease.denied_at = float("-inf")

    def holds(self, request_id: str) -> bool:
        """Whether a call holds money."""
        return request_id in self._holds

    @property
    def open_holds(self) -> int:
        """The number of calls that hold money."""
        return len(self._holds)

    async def run(self, seconds: float = 1.0) -> None:
        """Return unused leases and renew used ones, every `seconds`. Never returns."""
        while True:
            await asyncio.sleep(seconds)
            now = self._clock()
            self._release_lost(now)
            for account, lease in list(self._leases.items()):
                idle = lease.left > 0 and now - lease.used_at > IDLE_SECONDS
                needed = lease.held > 0 or lease.granted > lease.spent
                stale = needed and now - lease.requested_at > REFRESH_SECONDS
                if idle or stale:
                    await self._resize(account, lease, spare=0 if idle else max(0, lease.left))

    def _release_lost(self, now: float) -> None:
        """Release the holds of calls whose end was never reported."""
        lost_since = now - self.call_seconds - LOST_SECONDS
        lost = [call for call, (_, _, since) in self._holds.items() if since < lost_since]
        if lost:
            _log.warning("holds.lost_calls_released", calls=len(lost))
            self.release(lost)

    async def close(self) -> None:
        """Return everything that no running call holds."""
        for account, lease in list(self._leases.items()):
            if lease.left > 0:
                await self._resize(account, lease, spare=0)

    async def _resize(self, account: ObjectKey, lease: _Lease, spare: int) -> None:
        async with lease.lock:
            try:
                await self._request(account, lease, spare)
            except LedgerError as error:
                _log.warning("credit_lease.request_failed", account=str(account), error=str(error))

    async def _enlarge(self, account: ObjectKey, lease: _Lease, amount: int) -> bool:
        """Enlarge the lease for a call; one request covers all calls that wait."""
        lease.wanted += amount
        try:
            async with lease.lock:
                if lease.left < amount and self._clock() - lease.denied_at > DENIED_SECONDS:
                    spare = lease.wanted + SPARE_CALLS * amount
                    if not await self._request(account, lease, spare):
                        lease.denied_at = self._clock()
                return lease.left >= amount
        finally:
            lease.wanted -= amount

    async def _request(self, account: ObjectKey, lease: _Lease, spare: int) -> bool:
        """Set the lease to the held amount and `spare`; whether the ledger granted all of it."""
        requested = min(lease.held + spare, MAX_NANO)
        # An amount that this request may return must not be held while the ledger answers.
        lease.granted = min(lease.granted, lease.spent + requested)
        granted = await self._request_lease(CreditLeaseRequest(self.source, account, Nano(requested)))
        lease.requested_at = self._clock()
        lease.granted = granted.granted
        self._update(granted)
        return granted.granted - granted.spent >= requested

    def _update(self, granted: CreditLease) -> None:
        lease = self._leases.get(granted.account)
        if lease is not None:
            lease.spent = max(lease.spent, granted.spent)
