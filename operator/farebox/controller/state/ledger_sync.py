"""What the ledger must know to charge usage: account terms, bindings, prices, reservations. Told in batches.

Facts are offered at every pass and sent when they are new; the ledger drops what it has already. A ledger
that is away delays nothing else: what waits here is sent when it is back.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import structlog

from farebox.controller.queue import Key
from farebox.errors import LedgerError
from farebox.meterapi.types import (
    AccountRecord,
    Binding,
    LedgerAPI,
    PriceVersion,
    Record,
    RecordRefusal,
    ReservationRecord,
)
from farebox.metrics import LEDGER_RECORDS_PENDING

log = structlog.get_logger(__name__)
_BATCH = 500
_MAX_GONE: Final = 10_000
_MICROSECOND: Final = timedelta(microseconds=1)


class _Slot(NamedTuple):
    """What a fact is about: an object has one of each sort, a service a reservation for each of its uids."""

    key: Key
    sort: str
    uid: str


@dataclass
class LedgerSync:
    """Facts on their way to the ledger, one of each sort for an object.

    Args:
        on_answer: called with the key of an object whose fact was taken for the first time, or refused, or
            is refused no more.
    """

    ledger: LedgerAPI
    on_answer: Callable[[Key], None]
    retry_seconds: float = 1.0
    _pending: dict[_Slot, Record] = field(default_factory=dict)
    _taken: dict[Key, dict[_Slot, Record]] = field(default_factory=dict)
    _refused: dict[Key, dict[_Slot, tuple[Record, RecordRefusal]]] = field(default_factory=dict)
    _gone: OrderedDict[_Slot, datetime] = field(default_factory=OrderedDict)
    """From when on the last facts of deleted objects held."""
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pending(self) -> int:
        """How many facts the ledger has not answered yet."""
        return len(self._pending)

    def upsert(self, key: Key, record: Record) -> None:
        """Send a fact unless the ledger has it, refused the very same, or it is on its way."""
        slot = _slot(key, record)
        refused = self._refused.get(key, {}).get(slot)
        if refused is not None and _same(refused[0], record):
            return
        latest = self._pending.get(slot) or self._taken.get(key, {}).get(slot)
        if latest is not None and _same(latest, record):
            if refused is not None:
                # Its owner took back what was refused: the ledger has what is asked for now.
                del self._refused[key][slot]
                self.on_answer(key)
            return
        self._pending[slot] = _later(record, _since(latest) or self._gone.get(slot))
        LEDGER_RECORDS_PENDING.set(self.pending)
        self._wake.set()

    def forget(self, key: Key) -> None:
        """The object is gone; the ledger keeps what it was told."""
        for slot, record in self._taken.pop(key, {}).items():
            if (since := _since(record)) is not None:
                self._gone[slot] = since
        while len(self._gone) > _MAX_GONE:
            self._gone.popitem(last=False)
        self._refused.pop(key, None)

    def forget_all(self) -> None:
        """The ledger is another or an older one: everything has to be told again."""
        for slots in self._taken.values():
            for slot, record in slots.items():
                self._pending.setdefault(slot, record)
        self._taken.clear()
        self._refused.clear()
        self._wake.set()

    def refusal(self, key: Key) -> RecordRefusal | None:
        """Why the ledger did not take a fact of the object, if it refused one."""
        return next((refusal for _, refusal in self._refused.get(key, {}).values()), None)

    def acknowledged(self, key: Key, record: Record) -> bool:
        """Whether the ledger has taken or refused this very fact of the object."""
        slot = _slot(key, record)
        taken = self._taken.get(key, {}).get(slot)
        refused = self._refused.get(key, {}).get(slot)
        known = taken if refused is None else refused[0]
        return known is not None and _same(known, record)

    async def run(self) -> None:
        """Send what waits, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                try:
                    await self._send_batch()
                except LedgerError as error:
                    log.warning("records.not_sent", waiting=self.pending, error=str(error))
                    await asyncio.sleep(self.retry_seconds)

    async def _send_batch(self) -> None:
        # Accounts and prices first: bindings may then be charged at once, and reservations bought.
        batch = sorted(self._pending.items(), key=lambda item: _ORDER[type(item[1])])[:_BATCH]
        refusals = {refusal.index: refusal for refusal in await self.ledger.record([r for _, r in batch])}
        for index, (slot, record) in enumerate(batch):
            if self._pending.get(slot) is record:
                del self._pending[slot]
            self._answered(slot, record, refusals.get(index))
        LEDGER_RECORDS_PENDING.set(self.pending)

    def _answered(self, slot: _Slot, record: Record, refusal: RecordRefusal | None) -> None:
        key = slot.key
        was_refused = self._refused.get(key, {}).pop(slot, None) is not None
        if refusal is not None:
            self._refused.setdefault(key, {})[slot] = (record, refusal)
            log.error("record.refused", object=str(key), reason=refusal.reason, message=refusal.message)
            self.on_answer(key)
            return
        taken = self._taken.setdefault(key, {})
        first = slot not in taken
        taken[slot] = record
        if was_refused or first:
            self.on_answer(key)


def _slot(key: Key, record: Record) -> _Slot:
    return _Slot(key, type(record).__name__, record.uid if isinstance(record, ReservationRecord) else "")


def _since(record: Record | None) -> datetime | None:
    """From when on a fact holds, if it is of a sort that has a time."""
    return record.effective_at if isinstance(record, Binding | PriceVersion) else None


def _later(record: Record, before: datetime | None) -> Record:
    """The fact, not before the last one of its object, whatever clocks say: what was told later holds.

    An object's creation is known to the second and by the API server's clock, an edit by this one's. So a
    model that is edited, deleted and made again at once seems to be older than its edit.
    """
    if not isinstance(record, Binding | PriceVersion) or before is None or record.effective_at > before:
        return record
    return replace(record, effective_at=before + _MICROSECOND)


_ORDER: Final = {AccountRecord: 0, PriceVersion: 0, Binding: 1, ReservationRecord: 2}


def _same(known: Record, offered: Record) -> bool:
    """Whether two records say the same; the time of prices and bindings is that of their first offer."""
    match known, offered:
        case PriceVersion(), PriceVersion():
            return known.same_terms(offered)
        case Binding(), Binding():
            return replace(known, effective_at=offered.effective_at) == offered
        case _:
            return known == offered
