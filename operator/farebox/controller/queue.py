"""The work queue: every key at most once, never two workers on one key, single edits before bulk work.

It holds keys, not changes: a worker reads the newest facts, so ten changes cost one reconcile. A key that is
added while a worker has it is queued again afterwards. The design is that of client-go's workqueue.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from enum import IntEnum, StrEnum
from typing import NamedTuple

from farebox.domain.keys import ObjectKey
from farebox.metrics import QUEUE_ADDS, QUEUE_DEPTH, QUEUE_LATENCY, QUEUE_RETRIES


class Kind(StrEnum):
    """The kinds that the operator watches."""

    SERVICE = "InferenceService"
    MODEL = "Model"
    ACCOUNT = "BillingAccount"
    TOPUP = "TopUp"
    APIKEY = "APIKey"
    NAMESPACE = "Namespace"
    DEPLOYMENT = "Deployment"
    ENDPOINT = "Service"


class Key(NamedTuple):
    """One object to reconcile; cluster-scoped ones have an empty namespace."""

    kind: Kind
    namespace: str
    name: str

    @property
    def object(self) -> ObjectKey:
        """Its namespace and name."""
        return ObjectKey(self.namespace, self.name)

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


def service_key(service: ObjectKey) -> Key:
    """Return the queue's key of an InferenceService."""
    return Key(Kind.SERVICE, service.namespace, service.name)


def account_key(account: ObjectKey) -> Key:
    """Return the queue's key of a BillingAccount."""
    return Key(Kind.ACCOUNT, account.namespace, account.name)


def topup_key(topup: ObjectKey) -> Key:
    """Return the queue's key of a TopUp."""
    return Key(Kind.TOPUP, topup.namespace, topup.name)


def apikey_key(apikey: ObjectKey) -> Key:
    """Return the queue's key of an APIKey."""
    return Key(Kind.APIKEY, apikey.namespace, apikey.name)


def model_key(name: str) -> Key:
    """Return the queue's key of a Model."""
    return Key(Kind.MODEL, "", name)


class Priority(IntEnum):
    """Single edits are HIGH, bulk work is LOW. The smaller number is served first."""

    HIGH = 0
    LOW = 1


class WorkQueue:
    """Keys to reconcile.

    Args:
        jitter: random number in [0, 1) for backoff; tests fix it.
        base_delay, max_delay: seconds of backoff after the first and after many failures.
    """

    def __init__(
        self,
        *,
        base_delay: float = 0.005,
        max_delay: float = 60.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._ready: tuple[deque[Key], deque[Key]] = (deque(), deque())
        self._queued: dict[Key, tuple[Priority, float]] = {}
        self._working: dict[Key, Priority] = {}
        self._requeued: dict[Key, Priority] = {}
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, tuple[float, asyncio.TimerHandle]] = {}
        self._waiters: tuple[deque[asyncio.Future[None]], deque[asyncio.Future[None]]] = (deque(), deque())
        self._turns = (asyncio.Lock(), asyncio.Lock())
        self._base_delay = base_delay
        self._max_delay = max_delay
        self._jitter = jitter
        for kind in Kind:
            # The counter starts at 0: one that appears with its first retry shows no increase.
            QUEUE_RETRIES.labels(kind)

    def __len__(self) -> int:
        return len(self._queued)

    def idle(self) -> bool:
        """Return whether nothing waits and no worker has a key; delayed keys do not count."""
        return not self._queued and not self._working

    def add(self, key: Key, priority: Priority = Priority.HIGH) -> None:
        """Queue a key; one that already waits in the low priority moves to the high one."""
        QUEUE_ADDS.labels(key.kind).inc()
        if key in self._working:
            self._requeued[key] = min(priority, self._requeued.get(key, priority))
            return
        waiting = self._queued.get(key)
        if waiting is not None and waiting[0] <= priority:
            return
        # A key that moves to the high priority stays in its old deque; `_next` skips it there.
        self._queued[key] = (priority, waiting[1] if waiting else time.monotonic())
        self._ready[priority].append(key)
        QUEUE_DEPTH.set(len(self._queued))
        self._wake(priority)

    def add_after(self, key: Key, seconds: float, priority: Priority = Priority.LOW) -> None:
        """Queue a key after some seconds; of several delays of one key the earliest counts."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        pending = self._timers.get(key)
        if pending is not None:
            if pending[0] <= due:
                return
            pending[1].cancel()
        self._timers[key] = (due, loop.call_at(due, self._due, key, priority))

    def retry(self, key: Key, priority: Priority) -> float:
        """Queue a key after its next backoff; returns the seconds until then."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        QUEUE_RETRIES.labels(key.kind).inc()
        delay: float = min(self._max_delay, self._base_delay * 2 ** min(failures, 30))
        delay *= 0.5 + self._jitter() / 2
        self.add_after(key, delay, priority)
        return delay

    def forget(self, key: Key) -> None:
        """Reset the backoff of a key that was reconciled."""
        self._failures.pop(key, None)

    async def get(self, slowest: Priority = Priority.LOW) -> tuple[Key, Priority]:
        """Wait for a key of a priority up to `slowest`; the caller must call `done` with it.

        The event loop runs other tasks first: a reconcile without a write never waits, and thousands of them
        in a row (a start, a resync) would delay watches, probes and the Lease for seconds. Workers of one
        priority take turns, or a single edit would wait for a reconcile of each at each of its steps.
        """
        async with self._turns[slowest]:
            await asyncio.sleep(0)
        while True:
            taken = self._next(slowest)
            if taken is not None:
                return taken
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters[slowest].append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                # Another waiter must get the wake-up that this one cannot use.
                if waiter.done() and not waiter.cancelled():
                    self._wake(slowest)
                raise

    def done(self, key: Key) -> None:
        """Record that the worker has finished with the key."""
        del self._working[key]
        priority = self._requeued.pop(key, None)
        if priority is not None:
            self.add(key, priority)

    def _due(self, key: Key, priority: Priority) -> None:
        self._timers.pop(key, None)
        self.add(key, priority)

    def _next(self, slowest: Priority) -> tuple[Key, Priority] | None:
        for priority in Priority:
            if priority > slowest:
                break
            keys = self._ready[priority]
            while keys:
                key = keys.popleft()
                waiting = self._queued.get(key)
                if waiting is None or waiting[0] is not priority:
                    continue
                del self._queued[key]
                self._working[key] = priority
                QUEUE_DEPTH.set(len(self._queued))
                QUEUE_LATENCY.observe(time.monotonic() - waiting[1])
                return key, priority
        return None

    def _wake(self, priority: Priority) -> None:
        """Wake one worker that may take the priority, preferably one for the high priority alone."""
        for slowest in Priority:
            if slowest < priority:
                continue
            waiters = self._waiters[slowest]
            while waiters:
                waiter = waiters.popleft()
                if not waiter.done():
                    waiter.set_result(None)
                    return


class TokenBucket:
    """A rate limit: `rate` tokens a second on average, `burst` at once. Waiters are served in order."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._at = clock()

    async def take(self) -> None:
        """Take a token. Waits while the bucket is empty; later callers wait longer."""
        if (debt := self._spend()) > 0:
            await asyncio.sleep(debt / self._rate)

    def try_take(self) -> bool:
        """Take a token if there is one; returns whether there was."""
        self._refill()
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _spend(self) -> float:
        self._refill()
        self._tokens -= 1
        return -self._tokens

    def _refill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
