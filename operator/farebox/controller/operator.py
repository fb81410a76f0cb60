"""The operator's process: builds the parts, starts them in order, stops them in order.

sources (Kopf, reflectors, resync, ledger feed) -> state (cache, balances) -> queue -> workers -> reconcile,
where each reconciler gathers facts, lets the domain decide, and applies the difference.
"""

import asyncio
import contextlib
import gc
import socket
import uuid
from collections import Counter
from typing import Any

import structlog

from farebox.api import Phase
from farebox.controller import handlers
from farebox.controller.queue import Kind, Priority, TokenBucket, WorkQueue, topup_key
from farebox.controller.reconcile.apply import ClusterWriter
from farebox.controller.reconcile.context import Context
from farebox.controller.reconcile.events import Recorder
from farebox.controller.reconcile.topups import reconcile_topup
from farebox.controller.sources.dispatcher import Dispatcher
from farebox.controller.sources.kopf_session import KopfSession
from farebox.controller.sources.ledger_feed import ledger_feed
from farebox.controller.sources.resync import BACKEND_KINDS, Resync
from farebox.controller.state.balances import Balances
from farebox.controller.state.cache import Cache
from farebox.controller.state.entitlements import Entitlements
from farebox.controller.state.ledger_sync import LedgerSync
from farebox.controller.state.restore import mark_unread_unverified
from farebox.controller.state.shared_backend_demand import SharedBackendDemand
from farebox.controller.workers import Workers
from farebox.errors import ConfigurationError, LedgerError, NotFound, NotLeading
from farebox.health import serve_health
from farebox.kube.client import KubeClient
from farebox.kube.lease import Elector
from farebox.meterapi.types import Bookmark, LedgerAPI
from farebox.metrics import BALANCE_AGE, LEADER, SERVICES
from farebox.settings import OperatorSettings

log = structlog.get_logger(__name__)

_TICK_SECONDS = 1.0
_FEED_WAIT_SECONDS = 10.0
_FIRST_BALANCES_SECONDS = 5.0
"""How long reconciling waits after a start for the first balances, which are unknown until then."""
_CONFIRM_SECONDS = 2.0
_GARBAGE_THRESHOLDS = (20_000, 20, 20)
"""A cache of thousands of objects has no reference cycles; collecting it often delays single edits."""


class Operator:
    """One replica of the operator."""

    def __init__(self, settings: OperatorSettings, client: KubeClient, ledger: LedgerAPI) -> None:
        self.settings = settings
        identity = settings.identity or f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        self.elector = Elector(
            client, settings.system_namespace, settings.lease_name, identity, settings.lease_seconds
        )
        self.elector.bookmark = self._bookmark
        self.cache = Cache()
        self.queue = WorkQueue()
        self.balances = Balances(settings.balance_max_age_seconds)
        self.entitlements = Entitlements()
        self.recorder = Recorder(client, identity)
        self.ledger_sync = LedgerSync(ledger, self.queue.add)
        demand = SharedBackendDemand()
        self.dispatcher = Dispatcher(
            self.cache,
            self.queue,
            self.balances,
            self.entitlements,
            demand,
            self.ledger_sync,
            settings.figures_seconds,
        )
        bucket = TokenBucket(settings.write_qps, settings.write_burst)
        self.context = Context(
            cache=self.cache,
            balances=self.balances,
            entitlements=self.entitlements,
            shared_backend_demand=demand,
            queue=self.queue,
            writer=ClusterWriter(client, self.cache, bucket, self._may_write, self.dispatcher.on_change),
            recorder=self.recorder,
            ledger_sync=self.ledger_sync,
            ledger=ledger,
            backend_namespace=settings.backend_namespace,
            endpoint=settings.endpoint,
            figures_seconds=settings.figures_seconds,
            on_receipt=self.dispatcher.on_receipt,
            on_balance_confirmed=self.dispatcher.on_balance_confirmed,
        )
        self.workers = Workers(self.context)
        self.feed = ledger_feed(
            ledger,
            self.balances,
            self.entitlements,
            self.dispatcher.on_balance,
            self.dispatcher.on_quota,
            self.dispatcher.on_reservation,
            self.dispatcher.on_balances_known,
            self.dispatcher.on_ledger_reset,
            self.workers.retry_ledger,
            wait_seconds=min(_FEED_WAIT_SECONDS, settings.balance_max_age_seconds / 3),
        )
        self.resync = Resync(client, self.cache, settings.backend_namespace, self.dispatcher.on_change)
        self._bookmarks_valid = False
        self._client = client
        self._stop = asyncio.Event()
        self._first_balances_until = 0.0

    async def run(self) -> None:
        """Run until a signal arrives, a watch ends or the Lease is lost; then the process should exit.

        Raises:
            ConfigurationError: a CRD is not installed, or the port cannot be used.
        """
        health = await serve_health(
            self.settings.listen_host,
            self.settings.listen_port,
            "FAREBOX_LISTEN_PORT",
            self._unhealthy,
            self._unready,
        )
        LEADER.labels(self.settings.lease_name).set(0)
        BALANCE_AGE.set_function(self.balances.age)
        tasks: list[asyncio.Task[Any]] = []
        try:
            await self._initial_list()
            self._first_balances_until = asyncio.get_running_loop().time() + _FIRST_BALANCES_SECONDS
            tasks = [
                asyncio.create_task(self._lead(), name="leader"),
                asyncio.create_task(self.feed.run(), name="feed"),
                asyncio.create_task(self._tick(), name="tick"),
                *(
                    asyncio.create_task(self.resync.reflectors[kind].watch(), name=f"watch of {kind}")
                    for kind in BACKEND_KINDS
                ),
            ]
            # Kopf last: it cancels tasks that were created after its own.
            kopf = handlers.run(KopfSession(self._client, self.resync.reflectors), self._stop)
            tasks.append(asyncio.create_task(kopf, name="kopf"))
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                log.info("operator.stopping", because=task.get_name())
                # When Kopf ends it cancels what others wait for: the cancellation of a task is no error.
                if not task.cancelled():
                    task.result()
        finally:
            self._stop.set()
            asyncio.get_running_loop().set_exception_handler(ignore_open_generators)
            await _cancel(tasks)
            # Last: the next leader must not find a write of this replica in flight.
            await self.elector.release()
            await health.cleanup()

    async def _initial_list(self) -> None:
        gc.set_threshold(*_GARBAGE_THRESHOLDS)
        try:
            await self.resync.initial_list()
            self.feed.before = Bookmark.parse(await self.elector.read_bookmark())
        except NotFound as error:
            raise ConfigurationError(
                f"a kind is not installed: {error.message}; run: kubectl apply -k crds"
            ) from error
        # The cache stays: exclude it from garbage collection.
        gc.collect()
        gc.freeze()
        log.info("cache.synced", **{str(kind): len(self.cache.store(kind)) for kind in Kind})

    async def _lead(self) -> None:
        """Wait for the Lease, then reconcile until it is lost.

        Raises:
            NotLeading: the Lease was lost, so this replica must not act on what it knows any more.
        """
        election = asyncio.create_task(self.elector.run(), name="elector")
        leading = asyncio.create_task(self.elector.leading.wait(), name="leading")
        work: list[asyncio.Task[Any]] = []
        try:
            await asyncio.wait([election, leading], return_when=asyncio.FIRST_COMPLETED)
            LEADER.labels(self.settings.lease_name).set(1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._first_balances_until):
                    await self.feed.current.wait()
            await self._confirm_receipts()
            self.dispatcher.enqueue_all()
            work = [
                asyncio.create_task(self.ledger_sync.run(), name="records"),
                asyncio.create_task(self.recorder.run(), name="events"),
                asyncio.create_task(
                    self.resync.run(self.settings.sweep_seconds, self.dispatcher.enqueue_all), name="resync"
                ),
                *self.workers.start(self.settings.workers),
            ]
            ended, _ = await asyncio.wait([election, *work], return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
            raise NotLeading("the Lease was lost, and another replica may act now; this one restarts")
        finally:
            LEADER.labels(self.settings.lease_name).set(0)
            await _cancel([*work, leading])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await self.recorder.flush()
            await _cancel([election])

    async def _confirm_receipts(self) -> None:
        """Let the ledger confirm the top-ups that the last leader may not have read from the feed.

        This precedes all decisions. While the ledger is unreachable or slow, the workers retry, and those
        balances stay unknown.
        """
        read = Bookmark.parse(self.elector.inherited_bookmark)
        unread = mark_unread_unverified(self.cache, self.balances, read)
        self.dispatcher.enqueue_topups(unread)
        self._bookmarks_valid = True
        with contextlib.suppress(TimeoutError, LedgerError):
            async with asyncio.timeout(_CONFIRM_SECONDS):
                for topup in unread:
                    await reconcile_topup(self.context, topup_key(topup), Priority.LOW)

    def _bookmark(self) -> str | None:
        """Return how far the ledger was read, for the next leader; None while top-ups are unverified."""
        if self.balances.any_unverified or not self._bookmarks_valid:
            return None
        return str(self.feed.bookmark) or None

    async def _tick(self) -> None:
        """Update what depends on time alone: whether balances are still known, and the gauges."""
        was_known = False
        while True:
            known = self.balances.known
            if was_known and not known:
                self.dispatcher.on_balances_unknown()
            was_known = known
            phases = Counter(service.status.phase for service in self.cache.services.values())
            for phase in Phase:
                SERVICES.labels(phase).set(phases[phase])
            await asyncio.sleep(_TICK_SECONDS)

    # -- health -------------------------------------------------------------------------------------

    def _may_write(self) -> bool:
        return self.elector.leading.is_set() and self.elector.healthy()

    def _unhealthy(self) -> list[str]:
        """Return the problems that only a restart repairs."""
        problems = [f"the watch of {kind} misses changes" for kind in self.resync.stale_watches]
        problems += [f"the watch of {kind} does not reconnect" for kind in self.resync.silent_watches]
        if not self.elector.healthy():
            problems.append("the Lease was not renewed in time")
        return problems

    def _unready(self) -> list[str]:
        """Return what keeps this replica from acting, or from taking over."""
        if not self.resync.synced:
            return ["the initial lists are not complete"]
        return [f"the watch of {kind} has not connected yet" for kind in self.resync.unconnected_watches]


def ignore_open_generators(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Ignore what the event loop reports about generators that a cancelled Kopf leaves open.

    Every other error is handled as usual.
    """
    if "asyncgen" not in context:
        loop.default_exception_handler(context)


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
