"""What every reconciler works with, and the only way to write a status."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from farebox.api import AnyObject, Condition, Status
from farebox.clock import kubernetes_now
from farebox.controller.queue import Key, Priority, WorkQueue
from farebox.controller.reconcile.apply import ClusterWriter
from farebox.controller.reconcile.events import Recorder
from farebox.controller.reconcile.status import Urgency, conditions, status_change
from farebox.controller.state.balances import Balances
from farebox.controller.state.cache import Cache
from farebox.controller.state.entitlements import Entitlements
from farebox.controller.state.ledger_sync import LedgerSync
from farebox.controller.state.shared_backend_demand import SharedBackendDemand
from farebox.domain.conditions import ConditionVerdict
from farebox.domain.keys import ObjectKey
from farebox.meterapi.types import AccountBalance, LedgerAPI

COUNTS_SECONDS = 1.0
"""Seconds after a status write before counts alone are written."""
REFUSED_RETRY_SECONDS: Final = 30.0
"""Seconds before a refused write is retried: quotas and policies change without an event."""
_MAX_REQUEUE_SECONDS: Final = 3600.0
"""Later requeues are split into steps of this many seconds, so that deleted objects leave no long timers."""


class DefaultServiceRefusal(NamedTuple):
    """The API server's refusal of a Default service; not retried before `until` (monotonic seconds)."""

    message: str
    until: float


@dataclass
class Context:
    """Everything that a reconciler reads and writes. One for the process."""

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
    endpoint: str
    """The base URL of the gateway for the callers of services."""
    figures_seconds: float
    now: Callable[[], datetime] = kubernetes_now
    monotonic: Callable[[], float] = time.monotonic
    on_receipt: Callable[[AccountBalance], None] = lambda account: None
    """Called with the balance in a top-up's receipt, ahead of the feed."""
    on_balance_confirmed: Callable[[ObjectKey], None] = lambda account: None
    """Called with an account whose unverified balance was confirmed."""
    backend_errors: dict[ObjectKey, str] = field(default_factory=dict)
    """Refusals of backends, by the backend's key, until the API server accepts one."""
    default_refusals: dict[Key, dict[str, DefaultServiceRefusal]] = field(default_factory=dict)
    """Refusals of Default services, by account and name; see accounts.py."""
    applied_backends: dict[ObjectKey, tuple[str, str]] = field(default_factory=dict)
    """Digests of what was last written for a backend and of the result; see backends.py."""
    secrets_created: dict[str, datetime] = field(default_factory=dict)
    """Hashes of keys whose Secret was created, and when, until the status says so; see apikeys.py."""
    _written: dict[Key, float] = field(default_factory=dict)

    def conditions(self, regarding: AnyObject, verdicts: Iterable[ConditionVerdict]) -> tuple[Condition, ...]:
        """Return the conditions of an object after a decision about its current generation."""
        return conditions(regarding.status, verdicts, regarding.metadata.generation, self.now())

    async def write_status(
        self,
        key: Key,
        priority: Priority,
        regarding: AnyObject,
        status: Status,
        counts_seconds: float = COUNTS_SECONDS,
    ) -> bool:
        """Write the status of an object if it differs; returns whether it was written.

        A change that is not urgent waits after the last write of this object: `counts_seconds` for counts,
        `figures_seconds` for figures that move with traffic.
        """
        change = status_change(regarding.status, status)
        if change is None:
            return False
        delays = {Urgency.NOW: 0.0, Urgency.SOON: counts_seconds, Urgency.LATER: self.figures_seconds}
        elapsed = self.monotonic() - self._written.get(key, float("-inf"))
        if elapsed < delays[change.urgency]:
            self.queue.add_after(key, delays[change.urgency] - elapsed)
            return False
        version = int(regarding.metadata.resource_version)
        # Recorded before the answer: a change that arrives meanwhile is not due sooner than this one.
        self._written[key] = self.monotonic()
        await self.writer.patch_status(key.kind, key.object, version, change.patch, priority)
        return True

    def requeue_after(self, key: Key, due: datetime | None) -> None:
        """Requeue a key for when its verdict may change; None: the verdict does not change with time."""
        if due is not None:
            # Rounded up to a whole second, as `now` is: an earlier reconcile would decide the same.
            seconds = math.ceil((due - self.now()).total_seconds())
            self.queue.add_after(key, min(seconds, _MAX_REQUEUE_SECONDS))

    def forget(self, key: Key) -> None:
        """Drop what is kept for a deleted object."""
        self._written.pop(key, None)
        self.default_refusals.pop(key, None)
        self.ledger_sync.forget(key)
        self.queue.forget(key)
