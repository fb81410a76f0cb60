"""Raises the counts of keys' quotas to what the ledger has charged. Counts can be lost, charges cannot.

Counts in memory are empty after a restart, and so are those of a Valkey without a disk. Counts are never
lowered, so calls that are running and not charged yet stay counted.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Protocol

import structlog

from farebox.clock import milliseconds
from farebox.domain.admission.rate_limits import bucket_start, key_counter
from farebox.domain.admission.types import KeyPolicy, Window
from farebox.domain.keys import ObjectKey
from farebox.errors import FareboxError
from farebox.gateway.ratelimit.base import Counters
from farebox.gateway.snapshot import GatewaySnapshot

log = structlog.get_logger(__name__)


class KeyUsageSource(Protocol):
    """The source of the charged use of keys."""

    async def tokens_by_key(
        self, namespace: str, start: datetime, end: datetime, api_key: str = ""
    ) -> Mapping[str, int]:
        """Charged tokens by the name of the key. Raises LedgerUnavailable."""


class QuotaSync:
    """Raises counts of quotas to the charged use.

    Args:
        every_seconds: the interval for quotas of days and months. A lifetime is read once per key, because
            the query is long and later use is counted here or in the shared server.
    """

    def __init__(
        self,
        ledger: KeyUsageSource,
        snapshot: GatewaySnapshot,
        counters: Counters,
        clock: Callable[[], datetime],
        every_seconds: float = 60.0,
    ) -> None:
        self._ledger = ledger
        self._snapshot = snapshot
        self._counters = counters
        self._clock = clock
        self._every_seconds = every_seconds
        self._read: set[tuple[ObjectKey, datetime | None]] = set()

    async def run(self, ready: asyncio.Event) -> None:
        """Sync once `ready` says that the keys are known, and then periodically. Never returns."""
        await ready.wait()
        while True:
            try:
                await self.sync()
            except FareboxError as error:
                log.warning("quotas.sync_failed", error=str(error))
            await asyncio.sleep(self._every_seconds)

    async def sync(self) -> None:
        """Raise the counts of all keys that have a quota.

        Raises:
            LedgerUnavailable: the remaining keys are synced at the next interval.
        """
        groups: defaultdict[tuple[str, Window], list[KeyPolicy]] = defaultdict(list)
        for key in self._snapshot.keys_with_quota():
            assert key.quota is not None
            if key.quota.window is Window.LIFETIME:
                await self._sync_lifetime(key)
            else:
                groups[key.key.namespace, key.quota.window].append(key)
        for (namespace, window), keys in groups.items():
            now = self._clock()
            start = datetime.fromtimestamp(bucket_start(window, milliseconds(now)), UTC)
            tokens = await self._ledger.tokens_by_key(namespace, start, now)
            for key in keys:
                await self._raise(key.key, window, tokens.get(key.key.name, 0), now)

    async def _sync_lifetime(self, key: KeyPolicy) -> None:
        """Count from the creation of the key, because an earlier key may have had the same name."""
        name, now = (key.key, key.created_at), self._clock()
        if name in self._read or key.created_at is None:
            return
        tokens = await self._ledger.tokens_by_key(key.key.namespace, key.created_at, now, key.key.name)
        await self._raise(key.key, Window.LIFETIME, tokens.get(key.key.name, 0), now)
        self._read.add(name)

    async def _raise(self, key: ObjectKey, window: Window, used: int, now: datetime) -> None:
        if used:
            await self._counters.raise_to(key_counter(key, window), window, used, milliseconds(now))
