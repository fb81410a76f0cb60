"""Tells counts what the ledger knows of keys' quotas: counts may be lost, charges never are.

A process that counts in memory begins with nothing, and so does a Valkey without a disk. Counts are only
raised: what runs now, and is not charged yet, stays counted.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Protocol

import structlog

from farebox.clock import milliseconds
from farebox.domain.admission.demands import key_counter
from farebox.domain.admission.rate_limits import Window, bucket_start
from farebox.domain.admission.types import KeyPolicy
from farebox.domain.keys import ObjectKey
from farebox.errors import FareboxError
from farebox.gateway.ratelimit.memory import Counters
from farebox.gateway.snapshot import GatewaySnapshot

log = structlog.get_logger(__name__)


class KeyUsageSource(Protocol):
    """Where it is known what keys used."""

    async def tokens_by_key(
        self, namespace: str, start: datetime, end: datetime, api_key: str = ""
    ) -> Mapping[str, int]:
        """Tokens of keys by their names. Raises LedgerUnavailable."""


class QuotaSync:
    """Raises counts of quotas to what was charged.

    Args:
        every_seconds: how often days and months are compared. A lifetime is read once for each key: it is
            long, and after that its count is this process's own or the shared server's.
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
        """Compare for ever, once `ready` says that the keys are known."""
        await ready.wait()
        while True:
            try:
                await self.compare()
            except FareboxError as error:
                log.warning("quotas.not_compared", error=str(error))
            await asyncio.sleep(self._every_seconds)

    async def compare(self) -> None:
        """Raise the counts of all keys that have a quota.

        Raises:
            LedgerUnavailable: the rest comes next time.
        """
        groups: defaultdict[tuple[str, Window], list[KeyPolicy]] = defaultdict(list)
        for key in self._snapshot.keys_with_quota():
            assert key.quota is not None
            if key.quota.window is Window.LIFETIME:
                await self._compare_lifetime(key)
            else:
                groups[key.key.namespace, key.quota.window].append(key)
        for (namespace, window), keys in groups.items():
            now = self._clock()
            start = datetime.fromtimestamp(bucket_start(window, milliseconds(now)), UTC)
            tokens = await self._ledger.tokens_by_key(namespace, start, now)
            for key in keys:
                await self._raise(key.key, window, tokens.get(key.key.name, 0), now)

    async def _compare_lifetime(self, key: KeyPolicy) -> None:
        """Since the key was made: one that had its name before is another."""
        name, now = (key.key, key.created_at), self._clock()
        if name in self._read or key.created_at is None:
            return
        tokens = await self._ledger.tokens_by_key(key.key.namespace, key.created_at, now, key.key.name)
        await self._raise(key.key, Window.LIFETIME, tokens.get(key.key.name, 0), now)
        self._read.add(name)

    async def _raise(self, key: ObjectKey, window: Window, used: int, now: datetime) -> None:
        if used:
            await self._counters.raise_to(key_counter(key, window), window, used, milliseconds(now))
