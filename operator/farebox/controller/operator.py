"""The operator's process: puts the parts together, starts them in order, stops them in order.

watch -> cache -> queue -> (services | models | accounts | topups | apikeys).py: gather -> decide -> apply.
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
from farebox.controller.accounts import reconcile_account
from farebox.controller.apikeys import reconcile_apikey
from farebox.controller.apply import Writer
from farebox.controller.balances import Balances
from farebox.controller.cache import Cache, Change, is_farebox_backend
from farebox.controller.context import Context
from farebox.controller.demand import Demand
from farebox.controller.events import Recorder
from farebox.controller.feed import Feed
from farebox.controller.gather import known_balance
from farebox.controller.handlers import Watches
from farebox.controller.keys import Key, Kind, account_key, service_key
from farebox.controller.models import reconcile_model
from farebox.controller.queue import Lane, TokenBucket, WorkQueue
from farebox.controller.records import Records
from farebox.controller.routing import Work, after_balance, after_quota, concerned, edited, everything
from farebox.controller.services import reconcile_service
from farebox.controller.sweep import Sweep
from farebox.controller.terms import Terms
from farebox.controller.topups import doubt_balances, doubt_unread, reconcile_topup
from farebox.domain.facts import UNKNOWN
from farebox.domain.keys import ObjectKey
from farebox.domain.money import is_overdue, parse_amount
from farebox.errors import (
    ConfigurationError,
    Conflict,
    KubeError,
    KubeUnreachable,
    LedgerError,
    NotFound,
    NotLeading,
)
from farebox.health import serve_health
from farebox.kube.client import KubeClient
from farebox.kube.lease import Elector
from farebox.kube.names import key_of
from farebox.ledger.port import AccountBalance, Bookmark, LedgerPort, QuotaBalance
from farebox.metrics import BALANCE_AGE, LEADER, QUEUE_WORK, SERVICES
from farebox.settings import OperatorSettings

log = structlog.get_logger(__name__)

_RECONCILERS = {
    Kind.SERVICE: reconcile_service,
    Kind.MODEL: reconcile_model,
    Kind.ACCOUNT: reconcile_account,
    Kind.TOPUP: reconcile_topup,
    Kind.APIKEY: reconcile_apikey,
}
_FAST_WORKERS = 8
_TICK_SECONDS = 1.0
_FIGURES_REST_SECONDS = 0.2
_FEED_WAIT_SECONDS = 10.0
_PATIENCE_SECONDS = 5.0
"""After a start, work waits so long for the first balances: what comes a moment later is not unknown."""
_CONFIRM_SECONDS = 2.0
_GARBAGE_THRESHOLDS = (20_000, 20, 20)
"""A cache of thousands of objects holds no cycles, and walking it again and again holds up single edits."""


class Operator:
    """One replica of the operator."""

    def __init__(self, settings: OperatorSettings, client: KubeClient, ledger: LedgerPort) -> None:
        self.settings = settings
        identity = settings.identity or f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        self.elector = Elector(
            client, settings.system_namespace, settings.lease_name, identity, settings.lease_seconds
        )
        self.elector.note = self._read_to
        self.cache = Cache()
        self.queue = WorkQueue()
        self.balances = Balances(settings.balance_max_age_seconds)
        self.terms = Terms()
        self.recorder = Recorder(client, identity)
        self.records = Records(ledger, self.queue.add)
        self.feed = Feed(
            ledger,
            self.balances,
            self.terms,
            self._balance_changed,
            self._quota_changed,
            self._reservation_changed,
            self._balances_back,
            self._ledger_reset,
            self._ledger_back,
            wait_seconds=min(_FEED_WAIT_SECONDS, settings.balance_max_age_seconds / 3),
        )
        self.watches = Watches()
        self.sweep = Sweep(client, self.cache, settings.backend_namespace, self._changed)
        self.context = Context(
            cache=self.cache,
            balances=self.balances,
            terms=self.terms,
            demand=Demand(),
            queue=self.queue,
            writer=Writer(
                client,
                self.cache,
                TokenBucket(settings.write_qps, settings.write_burst),
                self._may_write,
                self._changed,
            ),
            recorder=self.recorder,
            records=self.records,
            ledger=ledger,
            backend_namespace=settings.backend_namespace,
            figures_seconds=settings.figures_seconds,
            balances_learned=self._balance_learned,
            balance_settled=self._balance_settled,
        )
        self.primed = False
        self._takes_notes = False
        self._client = client
        self._overdue: dict[ObjectKey, bool] = {}
        self._need_ledger: set[Key] = set()
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
            tasks += self.watches.run(self._client, self.sweep, self._observe, self._stop)
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
            await self.sweep.prime()
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
            self._enqueue_all()
            work = [
                asyncio.create_task(self.records.run(), name="records"),
                asyncio.create_task(self.recorder.run(), name="events"),
                asyncio.create_task(
                    self.sweep.run(self.settings.sweep_seconds, self._enqueue_all), name="sweep"
                ),
            ]
            work += [self._worker(Lane.FAST) for _ in range(_FAST_WORKERS)]
            work += [self._worker(Lane.BULK) for _ in range(self.settings.workers)]
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
        unread = list(doubt_unread(self.cache, self.balances, Bookmark.parse(self.elector.inherited)))
        self._enqueue(unread)
        self._takes_notes = True
        with contextlib.suppress(TimeoutError, LedgerError):
            async with asyncio.timeout(_CONFIRM_SECONDS):
                for work in unread:
                    await reconcile_topup(self.context, work.key, work.lane)

    def _worker(self, slowest: Lane) -> asyncio.Task[None]:
        return asyncio.create_task(self._work(slowest), name=f"worker {slowest.name}")

    async def _work(self, slowest: Lane) -> None:
        while True:
            key, lane = await self.queue.get(slowest)
            try:
                with QUEUE_WORK.labels(key.kind).time():
                    await _RECONCILERS[key.kind](self.context, key, lane)
                self.queue.forget(key)
                self._need_ledger.discard(key)
            except NotLeading:
                # A Lease that is lost for good ends the process. One that is only renewed late does not, and
                # then nobody else would do this.
                delay = self.queue.retry(key, lane)
                log.warning("write.not_leading", object=str(key), retry_seconds=round(delay, 3))
            except Conflict:
                self.queue.retry(key, lane)
            except (KubeError, KubeUnreachable, LedgerError) as error:
                if isinstance(error, LedgerError):
                    self._need_ledger.add(key)
                delay = self.queue.retry(key, Lane.BULK)
                log.warning(
                    "reconcile.failed", object=str(key), error=str(error), retry_seconds=round(delay, 3)
                )
            except Exception:
                delay = self.queue.retry(key, Lane.BULK)
                log.exception("reconcile.crashed", object=str(key), retry_seconds=round(delay, 3))
            finally:
                self.queue.done(key)

    # -- what comes in ------------------------------------------------------------------------------

    def _observe(self, kind: Kind, type_: str, raw: dict[str, Any]) -> None:
        """An event from a watch."""
        store = self.cache.store(kind)
        if kind in (Kind.DEPLOYMENT, Kind.ENDPOINT) and not is_farebox_backend(raw):
            return
        if type_ == "DELETED":
            change = store.remove(key_of(raw), int(raw["metadata"]["resourceVersion"]))
        else:
            change = store.put(raw)
        if change is not None:
            self._changed(change)

    def _changed(self, change: Change[Any]) -> None:
        if change.kind is Kind.ACCOUNT and edited(change.old, change.new):
            # A credit limit turns the account's state as a balance does, so the next balance is news again.
            self._overdue.pop(change.key, None)
        self._enqueue(concerned(self.cache, change))

    def _balance_learned(self, balance: AccountBalance) -> None:
        """A balance that came with a receipt."""
        if self.balances.learn(balance):
            self._balance_changed(balance.account)

    def _balance_changed(self, account: ObjectKey) -> None:
        """A balance moved: the services are looked at again only if the account's state did, too."""
        found = self.cache.accounts.get(account)
        if found is None:
            return
        balance = known_balance(self.balances, account, found)
        if balance is UNKNOWN:
            # What is in doubt is for the account's pass to clear up.
            self.queue.add(account_key(account))
            return
        overdue = is_overdue(balance.balance, parse_amount(found.spec.credit_limit))
        if self._overdue.get(account) is overdue:
            # Figures alone: those of a busy account make a few passes a second, not one for each call.
            self.queue.add_after(account_key(account), _FIGURES_REST_SECONDS)
            return
        self._overdue[account] = overdue
        self._enqueue(after_balance(self.cache, account))

    def _balance_settled(self, account: ObjectKey) -> None:
        """A balance that was in doubt can be trusted: everything on the account is looked at anew."""
        self._overdue.pop(account, None)
        self._balance_changed(account)

    def _quota_changed(self, quota: QuotaBalance, turned: bool) -> None:
        """A free quota moved: at once where it decides about its services, otherwise as a figure."""
        rest = 0.0 if turned else self.settings.figures_seconds
        self._enqueue(after_quota(self.cache, quota.account, quota.model, rest))

    def _reservation_changed(self, service: ObjectKey) -> None:
        self.queue.add(service_key(service))

    def _ledger_back(self) -> None:
        """It was away: what failed for want of it is tried now, and not after a backoff of up to a minute."""
        for key in self._need_ledger:
            self.queue.forget(key)
            self.queue.add(key, Lane.BULK)
        self._need_ledger.clear()

    def _balances_back(self) -> None:
        """Balances are known again: what changed meanwhile, or waited for them, is looked at."""
        for account in list(self.cache.accounts):
            self.queue.add(account_key(account), Lane.BULK)
            self._balance_changed(account)
        for service in self.terms.services():
            self.queue.add(service_key(service), Lane.BULK)
        for service in list(self.context.demand.held):
            self.queue.add(service_key(service), Lane.BULK)

    def _balances_lost(self) -> None:
        """The feed is silent: the accounts say so; their services stay as they are."""
        log.warning("balances.unknown", silent_seconds=round(self.balances.age(), 1))
        for account in list(self.cache.accounts):
            self.queue.add(account_key(account), Lane.BULK)

    def _ledger_reset(self) -> None:
        """The ledger lacks what came after its backup: it is told everything again, the top-ups as well."""
        self._overdue.clear()
        self.records.forget_all()
        self._enqueue(doubt_balances(self.cache, self.balances))

    def _read_to(self) -> str | None:
        """For the next operator: how far the ledger was read. Not before all is booked that it had lost."""
        if self.balances.in_doubt or not self._takes_notes:
            return None
        return str(self.feed.bookmark) or None

    def _enqueue(self, work: Any) -> None:
        item: Work
        for item in work:
            if item.seconds:
                self.queue.add_after(item.key, item.seconds, item.lane)
            else:
                self.queue.add(item.key, item.lane)

    def _enqueue_all(self) -> None:
        """Look at everything, single-mindedly: after taking the Lease, and after each sweep."""
        self._enqueue(everything(self.cache, self.terms.services()))

    async def _tick(self) -> None:
        """What depends on time alone: whether balances are still known, and the gauges."""
        was_known = False
        while True:
            known = self.balances.known
            if was_known and not known:
                self._balances_lost()
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
        problems = [f"the watch of {kind} misses changes" for kind in self.sweep.deaf]
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
