"""The workers: each takes a key and makes one pass over the object; what failed comes again."""

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
    """Makes passes; all retries are decided here."""

    def __init__(self, context: Context) -> None:
        self.need_ledger: set[Key] = set()
        """Keys whose last pass failed for want of the ledger."""
        self._context = context
        self._queue = context.queue

    def start(self, bulk: int) -> list[asyncio.Task[Any]]:
        """Some workers for single edits alone, and so many for everything."""
        priorities = [Priority.HIGH] * _FAST_WORKERS + [Priority.LOW] * bulk
        return [
            asyncio.create_task(self.work(priority), name=f"worker {priority.name}")
            for priority in priorities
        ]

    def ledger_back(self) -> None:
        """It was away: what failed for want of it is tried now, and not after a backoff of up to a minute."""
        for key in self.need_ledger:
            self._queue.forget(key)
            self._queue.add(key, Priority.LOW)
        self.need_ledger.clear()

    async def work(self, slowest: Priority) -> None:
        """Take keys of the priorities up to `slowest`, for ever."""
        while True:
            key, priority = await self._queue.get(slowest)
            try:
                with QUEUE_WORK.labels(key.kind).time():
                    await _RECONCILERS[key.kind](self._context, key, priority)
                self._queue.forget(key)
                self.need_ledger.discard(key)
            except NotLeading:
                # A Lease that is lost for good ends the process. One that is only renewed late does not, and
                # then nobody else would do this.
                delay = self._queue.retry(key, priority)
                log.warning("write.not_leading", object=str(key), retry_seconds=round(delay, 3))
            except Conflict:
                self._queue.retry(key, priority)
            except (KubeError, KubeUnreachable, LedgerError) as error:
                if isinstance(error, LedgerError):
                    self.need_ledger.add(key)
                delay = self._queue.retry(key, Priority.LOW)
                log.warning(
                    "reconcile.failed", object=str(key), error=str(error), retry_seconds=round(delay, 3)
                )
            except Exception:
                delay = self._queue.retry(key, Priority.LOW)
                log.exception("reconcile.crashed", object=str(key), retry_seconds=round(delay, 3))
            finally:
                self._queue.done(key)
