"""What every reconciler works with, and the one way in which statuses are written."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from farebox.api import APIObject, Status
from farebox.clock import kubernetes_now
from farebox.controller.queue import Key, Priority, WorkQueue
from farebox.controller.reconcile.apply import ClusterWriter
from farebox.controller.reconcile.events import Recorder
from farebox.controller.reconcile.status import Urgency, status_change
from farebox.controller.state.balances import Balances
from farebox.controller.state.cache import Cache
from farebox.controller.state.entitlements import Entitlements
from farebox.controller.state.ledger_sync import LedgerSync
from farebox.controller.state.shared_backend_demand import SharedBackendDemand
from farebox.domain.keys import ObjectKey
from farebox.meterapi.types import AccountBalance, LedgerAPI

COUNTS_SECONDS = 1.0
"""How long a status rests before counts alone are written."""
REFUSED_RETRY_SECONDS: Final = 30.0
"""What the API server refuses is tried again after so long: quotas and policies change without a word."""
_FURTHEST_SECONDS: Final = 3600.0
"""A look that is due later is asked for again by then, so that deleted objects leave no timers for months."""


class DefaultServiceRefusal(NamedTuple):
    """The API server's no to a Default service, which is not asked again before `until` (monotonic)."""

    message: str
    until: float


@dataclass
class Context:
    """Everything a pass over a key reads and writes. Made once for the process."""

    cache: Cache
    balances: Balances
    entitlements: Entitlements
    shared_backend_demand: SharedBackendDemand
    queue: WorkQueue
    writer: ClusterWriter
    recorder: Recorder
    ledger_sync: LedgerSync
    ledger: LedgerAPI
    backend_namespace: str
    figures_seconds: float
    now: Callable[[], datetime] = kubernetes_now
    monotonic: Callable[[], float] = time.monotonic
    on_receipt: Callable[[AccountBalance], None] = lambda account: None
    """Takes in a balance that came otherwise than by the feed, and wakes what depends on it."""
    on_balance_confirmed: Callable[[ObjectKey], None] = lambda account: None
    """The last top-up that an account's balance waited for is in it: what depends on it is woken."""
    backend_errors: dict[ObjectKey, str] = field(default_factory=dict)
    """The API server's refusals of backends, by the backend's key, until one is accepted."""
    default_refusals: dict[Key, dict[str, DefaultServiceRefusal]] = field(default_factory=dict)
    """Default services that the API server refused, by their account and their name; see accounts.py."""
    settled_backends: dict[ObjectKey, tuple[str, str]] = field(default_factory=dict)
    """What was last written for a backend and the version that came of it; see backends.py."""
    secrets_made: dict[str, datetime] = field(default_factory=dict)
    """Hashes of keys whose Secret was made, and when, until the status says so; see apikeys.py."""
    _written: dict[Key, float] = field(default_factory=dict)

    async def write_status(
        self,
        key: Key,
        priority: Priority,
        current: APIObject,
        old: Status,
        new: Status,
        counts_seconds: float = COUNTS_SECONDS,
    ) -> bool:
        """Write a status if it differs; True when it was written.

        A change that is not urgent waits until the last write of this object was long enough ago:
        `counts_seconds` for counts, `figures_seconds` for what moves with traffic.
        """
        change = status_change(old, new)
        if change is None:
            return False
        rest = {Urgency.NOW: 0.0, Urgency.SOON: counts_seconds, Urgency.LATER: self.figures_seconds}
        rested = self.monotonic() - self._written.get(key, float("-inf"))
        if rested < rest[change.urgency]:
            self.queue.add_after(key, rest[change.urgency] - rested)
            return False
        version = int(current.metadata.resource_version)
        # Noted before the answer: a change that comes meanwhile is not sooner due than this one.
        self._written[key] = self.monotonic()
        await self.writer.patch_status(key.kind, key.object, version, change.patch, priority)
        return True

    def requeue_after(self, key: Key, due: datetime | None) -> None:
        """Ask for a pass at the moment when a verdict is due to be looked at again, if it is."""
        if due is not None:
            # Up to a whole second, as `now` is: a pass before the moment would find nothing new.
            seconds = math.ceil((due - self.now()).total_seconds())
            self.queue.add_after(key, min(seconds, _FURTHEST_SECONDS))

    def forget(self, key: Key) -> None:
        """The object is gone."""
        self._written.pop(key, None)
        self.default_refusals.pop(key, None)
        self.ledger_sync.forget(key)
        self.queue.forget(key)
