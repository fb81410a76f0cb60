"""The workers: each takes a key and makes one pass over the object; what failed comes again."""

import asyncio
from typing import Any

import structlog

from farebox.controller.keys import Key, Kind
from farebox.controller.queue import Lane
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
        lanes = [Lane.FAST] * _FAST_WORKERS + [Lane.BULK] * bulk
        return [asyncio.create_task(self.work(lane), name=f"worker {lane.name}") for lane in lanes]

    def ledger_back(self) -> None:
        """It was away: what failed for want of it is tried now, and not after a backoff of up to a minute."""
        for key in self.need_ledger:
            self._queue.forget(key)
            self._queue.add(key, Lane.BULK)
        self.need_ledger.clear()

    async def work(self, slowest: Lane) -> None:
        """Take keys of the lanes up to `slowest`, for ever."""
        while True:
            key, lane = await self._queue.get(slowest)
            try:
                with QUEUE_WORK.labels(key.kind).time():
                    await _RECONCILERS[key.kind](self._context, key, lane)
                self._queue.forget(key)
                self.need_ledger.discard(key)
            except NotLeading:
                # A Lease that is lost for good ends the process. One that is only renewed late does not, and
                # then nobody else would do this.
                delay = self._queue.retry(key, lane)
                log.warning("write.not_leading", object=str(key), retry_seconds=round(delay, 3))
            except Conflict:
                self._queue.retry(key, lane)
            except (KubeError, KubeUnreachable, LedgerError) as error:
                if isinstance(error, LedgerError):
                    self.need_ledger.add(key)
                delay = self._queue.retry(key, Lane.BULK)
                log.warning(
                    "reconcile.failed", object=str(key), error=str(error), retry_seconds=round(delay, 3)
                )
            except Exception:
                delay = self._queue.retry(key, Lane.BULK)
                log.exception("reconcile.crashed", object=str(key), retry_seconds=round(delay, 3))
            finally:
                self._queue.done(key)
