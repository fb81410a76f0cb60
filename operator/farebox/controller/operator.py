"""The operator's process: puts the parts together, starts them in order, stops them in order.

watch -> intake -> cache -> queue -> workers -> (services | models | accounts | topups | apikeys).py, and in
these gather -> decide -> apply.
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
from farebox.controller.queue import Kind, TokenBucket, WorkQueue
from farebox.controller.reconcile.apply import ClusterWriter
from farebox.controller.reconcile.context import Context
from farebox.controller.reconcile.events import Recorder
from farebox.controller.reconcile.topups import mark_unread_unverified, reconcile_topup
from farebox.controller.sources.dispatcher import Dispatcher
from farebox.controller.sources.kopf_session import Watches
from farebox.controller.sources.ledger_feed import LedgerFeed
from farebox.controller.sources.resync import Resync
from farebox.controller.state.balances import Balances
from farebox.controller.state.cache import Cache
from farebox.controller.state.entitlements import Entitlements
from farebox.controller.state.ledger_sync import LedgerSync
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
_PATIENCE_SECONDS = 5.0
"""After a start, work waits so long for the first balances: what comes a moment later is not unknown."""
_CONFIRM_SECONDS = 2.0
_GARBAGE_THRESHOLDS = (20_000, 20, 20)
"""A cache of thousands of objects holds no cycles, and walking it again and again holds up single edits."""


class Operator:
    """One replica of the operator."""

    def __init__(self, settings: OperatorSettings, client: KubeClient, ledger: LedgerAPI) -> None:
        self.settings = settings
        identity = settings.identity or f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        self.elector = Elector(
            client, settings.system_namespace, settings.lease_name, identity, settings.lease_seconds
        )
        self.elector.note = self._read_to
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
            figures_seconds=settings.figures_seconds,
            on_receipt=self.dispatcher.on_receipt,
            on_balance_confirmed=self.dispatcher.on_balance_confirmed,
        )
        self.workers = Workers(self.context)
        self.feed = LedgerFeed(
            ledger,
            self.balances,
            self.entitlements,
            self.dispatcher.on_balance,
            self.dispatcher.on_quota,
            self.dispatcher.on_reservation,
            self.dispatcher.on_balances_known,
            self.dispatcher.on_ledger_reset,
            self.workers.ledger_back,
            wait_seconds=min(_FEED_WAIT_SECONDS, settings.balance_max_age_seconds / 3),
        )
        self.watches = Watches()
        self.resync = Resync(client, self.cache, settings.backend_namespace, self.dispatcher.on_change)
        self.primed = False
        self._takes_notes = False
        self._client = client
        self._stop = asyncio.Event()
        self._patient_until = 0.0

    async def run(self) -> None:
        """Run until a signal comes, a watch ends or the Lease is lost; then the process should exit.

        Raises:
            ConfigurationError: the kinds are not installed, or the port is taken.
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
            await self._prime()
            self._patient_until = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
            # Before kopf: it cancels tasks that are made after it started.
            tasks = [
                asyncio.create_task(self._lead(), name="leader"),
                asyncio.create_task(self.feed.run(), name="feed"),
                asyncio.create_task(self._tick(), name="tick"),
            ]
            tasks += self.watches.run(self._client, self.resync, self.dispatcher.on_watch_event, self._stop)
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                log.info("operator.stopping", because=task.get_name())
                # Kopf cancels what others wait on when it ends: that is an end, not an error.
                if not task.cancelled():
                    task.result()
        finally:
            self._stop.set()
            asyncio.get_running_loop().set_exception_handler(watches_left_open)
            await _cancel(tasks)
            # Last: whoever takes over at once finds no write of this replica under way.
            await self.elector.release()
            await health.cleanup()

    async def _prime(self) -> None:
        gc.set_threshold(*_GARBAGE_THRESHOLDS)
        try:
            await self.resync.initial_list()
            self.feed.before = Bookmark.parse(await self.elector.noted())
        except NotFound as error:
            raise ConfigurationError(
                f"a kind is not installed: {error.message}; run: kubectl apply -k crds"
            ) from error
        # What is cached now stays, and need not be looked at by the garbage collector again.
        gc.collect()
        gc.freeze()
        self.primed = True
        log.info("cache.primed", **{str(kind): len(self.cache.store(kind)) for kind in Kind})

    async def _lead(self) -> None:
        """Wait for the Lease, then work until it is lost.

        Raises:
            NotLeading: it was lost; what this replica knows is not to be acted on any more.
        """
        election = asyncio.create_task(self.elector.run(), name="elector")
        leading = asyncio.create_task(self.elector.leading.wait(), name="leading")
        work: list[asyncio.Task[Any]] = []
        try:
            await asyncio.wait([election, leading], return_when=asyncio.FIRST_COMPLETED)
            LEADER.labels(self.settings.lease_name).set(1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._patient_until):
                    await self.feed.current.wait()
            await self._confirm_receipts()
            self.dispatcher.enqueue_all()
            work = [
                asyncio.create_task(self.ledger_sync.run(), name="records"),
                asyncio.create_task(self.recorder.run(), name="events"),
                asyncio.create_task(
                    self.resync.run(self.settings.sweep_seconds, self.dispatcher.enqueue_all), name="sweep"
                ),
                *self.workers.start(self.settings.workers),
            ]
            ended, _ = await asyncio.wait([election, *work], return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
            raise NotLeading("the Lease was lost, and another replica may act now: this one starts anew")
        finally:
            LEADER.labels(self.settings.lease_name).set(0)
            await _cancel([*work, leading])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await self.recorder.flush()
            await _cancel([election])

    async def _confirm_receipts(self) -> None:
        """Ask for what the last leader booked and may not have read since, before anything is decided.

        A ledger that is away, or slow, is asked by the workers: until then those balances are unknown.
        """
        unread = list(
            mark_unread_unverified(self.cache, self.balances, Bookmark.parse(self.elector.inherited))
        )
        self.dispatcher.enqueue(unread)
        self._takes_notes = True
        with contextlib.suppress(TimeoutError, LedgerError):
            async with asyncio.timeout(_CONFIRM_SECONDS):
                for work in unread:
                    await reconcile_topup(self.context, work.key, work.priority)

    def _read_to(self) -> str | None:
        """For the next operator: how far the ledger was read. Not before all is booked that it had lost."""
        if self.balances.any_unverified or not self._takes_notes:
            return None
        return str(self.feed.bookmark) or None

    async def _tick(self) -> None:
        """What depends on time alone: whether balances are still known, and the gauges."""
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
        """What only a restart mends."""
        problems = [f"the watch of {kind} misses changes" for kind in self.resync.stale_watches]
        problems += [f"the watch of {kind} does not connect any more" for kind in self.watches.silent()]
        if not self.elector.healthy():
            problems.append("the Lease was not renewed in time")
        return problems

    def _unready(self) -> list[str]:
        """What keeps this replica from acting, or from taking over."""
        if not self.primed:
            return ["the first lists are not complete"]
        return [f"the watch of {kind} has not connected yet" for kind in self.watches.never_connected()]


def watches_left_open(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Kopf leaves generators open when it is cancelled; the loop complains of them when it closes them.

    That is no error of anybody's; all else is reported as always.
    """
    if "asyncgen" not in context:
        loop.default_exception_handler(context)


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
