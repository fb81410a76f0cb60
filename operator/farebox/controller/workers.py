"""The workers: each takes a key and reconciles the object. Only here failures are retried."""

import asyncio
from typing import Any

import structlog

from farebox.controller.queue import Key, Kind, Priority
from farebox.controller.reconcile.accounts import reconcile_account
from farebox.controller.reconcile.apikeys import reconcile_apikey
from farebox.controller.reconcile.context import Context
from farebox.controller.reconcile.models import reconcile_model
from farebox.controller.reconcile.services import reconcile_service
from farebox.controller.reconcile.topups import reconcile_topup
from farebox.errors import Conflict, KubeError, KubeUnreachable, LedgerError, NotLeading
from farebox.metrics import QUEUE_WORK

log = structlog.get_logger(__name__)

_RECONCILERS = {
    Kind.SERVICE: reconcile_service,
    Kind.MODEL: reconcile_model,
    Kind.ACCOUNT: reconcile_account,
    Kind.TOPUP: reconcile_topup,
    Kind.APIKEY: reconcile_apikey,
}
_FAST_WORKERS = 8


class Workers:
    """Reconcile queued keys."""

    def __init__(self, context: Context) -> None:
        self.waiting_for_ledger: set[Key] = set()
        """Keys whose last reconcile failed because the ledger was unreachable or refused."""
        self._context = context
        self._queue = context.queue

    def start(self, bulk: int) -> list[asyncio.Task[Any]]:
        """Start the workers: some for single edits alone, and `bulk` for all keys."""
        priorities = [Priority.HIGH] * _FAST_WORKERS + [Priority.LOW] * bulk
        return [
            asyncio.create_task(self.work(priority), name=f"worker {priority.name}")
            for priority in priorities
        ]

    def retry_ledger(self) -> None:
        """Retry now what failed while the ledger was unreachable, not after a backoff of up to a minute."""
        for key in self.waiting_for_ledger:
            self._queue.forget(key)
            self._queue.add(key, Priority.LOW)
        self.waiting_for_ledger.clear()

    async def work(self, slowest: Priority) -> None:
        """Reconcile keys of the priorities up to `slowest`. Never returns."""
        while True:
            key, priority = await self._queue.get(slowest)
            try:
                with QUEUE_WORK.labels(key.kind).time():
                    await _RECONCILERS[key.kind](self._context, key, priority)
                self._queue.forget(key)
                self.waiting_for_ledger.discard(key)
            except NotLeading:
                # A lost Lease ends the process. A Lease that was renewed late does not, and no other replica
                # reconciles this key then.
                delay = self._queue.retry(key, priority)
                log.warning("write.not_leading", object=str(key), retry_seconds=round(delay, 3))
            except Conflict:
                self._queue.retry(key, priority)
            except (KubeError, KubeUnreachable, LedgerError) as error:
                if isinstance(error, LedgerError):
                    self.waiting_for_ledger.add(key)
                delay = self._queue.retry(key, Priority.LOW)
                log.warning(
                    "reconcile.failed", object=str(key), error=str(error), retry_seconds=round(delay, 3)
                )
            except Exception:
                delay = self._queue.retry(key, Priority.LOW)
                log.exception("reconcile.crashed", object=str(key), retry_seconds=round(delay, 3))
            finally:
                self._queue.done(key)
