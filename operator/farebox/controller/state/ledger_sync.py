"""Sends the ledger the records that it charges usage by: accounts, bindings, prices, reservations.

Every reconcile offers its records, and new ones are sent in batches. An unreachable ledger delays nothing
else: records wait here until it answers.
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
_MAX_DELETED: Final = 10_000
_MICROSECOND: Final = timedelta(microseconds=1)


class _Slot(NamedTuple):
    """Identifies a record: an object has one of each type, a service one reservation for each uid."""

    key: Key
    type: str
    uid: str


@dataclass
class LedgerSync:
    """Records on their way to the ledger, and its answers.

    Args:
        on_answer: called with the key of an object whose record was accepted for the first time or refused,
            or whose refusal ended.
    """

    ledger: LedgerAPI
    on_answer: Callable[[Key], None]
    retry_seconds: float = 1.0
    _pending: dict[_Slot, Record] = field(default_factory=dict)
    _accepted: dict[Key, dict[_Slot, Record]] = field(default_factory=dict)
    _refused: dict[Key, dict[_Slot, tuple[Record, RecordRefusal]]] = field(default_factory=dict)
    _deleted_since: OrderedDict[_Slot, datetime] = field(default_factory=OrderedDict)
    """Since when the last records of deleted objects were in effect."""
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pending(self) -> int:
        """The number of records that the ledger has not answered yet."""
        return len(self._pending)

    def upsert(self, key: Key, record: Record) -> None:
        """Send a record, unless the ledger has accepted or refused an equal one, or one is on its way."""
        slot = _slot(key, record)
        refused = self._refused.get(key, {}).get(slot)
        if refused is not None and _same(refused[0], record):
            return
        latest = self._pending.get(slot) or self._accepted.get(key, {}).get(slot)
        if latest is not None and _same(latest, record):
            if refused is not None:
                # The refused edit was reverted: the ledger has the current record.
                del self._refused[key][slot]
                self.on_answer(key)
            return
        self._pending[slot] = _later(record, _effective_at(latest) or self._deleted_since.get(slot))
        LEDGER_RECORDS_PENDING.set(self.pending)
        self._wake.set()

    def forget(self, key: Key) -> None:
        """Drop a deleted object; the ledger keeps its records."""
        for slot, record in self._accepted.pop(key, {}).items():
            if (at := _effective_at(record)) is not None:
                self._deleted_since[slot] = at
        while len(self._deleted_since) > _MAX_DELETED:
            self._deleted_since.popitem(last=False)
        self._refused.pop(key, None)

    def forget_all(self) -> None:
        """Send all records again: the ledger was replaced, or restored from an older copy."""
        for slots in self._accepted.values():
            for slot, record in slots.items():
                self._pending.setdefault(slot, record)
        self._accepted.clear()
        self._refused.clear()
        self._wake.set()

    def refusal(self, key: Key) -> RecordRefusal | None:
        """Return why the ledger refused a record of the object; None if it refused none."""
        return next((refusal for _, refusal in self._refused.get(key, {}).values()), None)

    def acknowledged(self, key: Key, record: Record) -> bool:
        """Return whether the ledger has accepted or refused this very record of the object."""
        slot = _slot(key, record)
        accepted = self._accepted.get(key, {}).get(slot)
        refused = self._refused.get(key, {}).get(slot)
        known = accepted if refused is None else refused[0]
        return known is not None and _same(known, record)

    async def run(self) -> None:
        """Send pending records. Never returns."""
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
        # Accounts and prices first, so that bindings can be charged and reservations bought at once.
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
        accepted = self._accepted.setdefault(key, {})
        first = slot not in accepted
        accepted[slot] = record
        if was_refused or first:
            self.on_answer(key)


def _slot(key: Key, record: Record) -> _Slot:
    return _Slot(key, type(record).__name__, record.uid if isinstance(record, ReservationRecord) else "")


def _effective_at(record: Record | None) -> datetime | None:
    """Return since when a record is in effect; None for a type without a time."""
    return record.effective_at if isinstance(record, Binding | PriceVersion) else None


def _later(record: Record, before: datetime | None) -> Record:
    """Return the record with a time after that of the previous one: the later record must win.

    The API server's clock dates a creation, to the second; this process's clock dates an edit. So a model
    that is edited, deleted and recreated at once can seem older than its edit.
    """
    if not isinstance(record, Binding | PriceVersion) or before is None or record.effective_at > before:
        return record
    return replace(record, effective_at=before + _MICROSECOND)


_ORDER: Final = {AccountRecord: 0, PriceVersion: 0, Binding: 1, ReservationRecord: 2}


def _same(known: Record, offered: Record) -> bool:
    """Return whether two records are equal, but for the time of prices and bindings, set by the first one."""
    match known, offered:
        case PriceVersion(), PriceVersion():
            return known.same_terms(offered)
        case Binding(), Binding():
            return replace(known, effective_at=offered.effective_at) == offered
        case _:
            return known == offered
