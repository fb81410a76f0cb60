"""Usage events: each is stored once and charged once, even when repeated, reordered or late (B12).

An event that cannot be charged yet is stored as pending with what it waits for. `charge_pending` charges it
in the transaction that records the missing fact. `charging.py` finds the price of an event.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any, Final, TypeVar

import structlog
from sqlalchemy import ARRAY, BindParameter, Row, Text, any_, bindparam, func, select, update

from farebox.clock import from_micros, to_micros
from farebox.domain.billing.coverage import CallTokens
from farebox.domain.billing.pricing import usage_error
from farebox.domain.keys import ObjectKey
from farebox.ledger.booking.charging import OUTCOME_COLUMNS, Charging, is_charged
from farebox.ledger.booking.credit_leases import leases_of
from farebox.ledger.booking.journal import Journal
from farebox.ledger.booking.unit_of_work import MAX_CLOCK_SKEW
from farebox.ledger.db import tables
from farebox.ledger.db.prepared import BulkInsert, Prepared
from farebox.meterapi.usage import IngestResult, MeteredCalls, PendingEvent, Rejection, UsageEvent

_EARLIEST: Final = from_micros(0)
_CHUNK: Final = 500
_PENDING_PAGE: Final = 5_000

_log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass(slots=True)
class _Tally:
    fresh: list[tuple[UsageEvent, CallTokens]] = field(default_factory=list)
    duplicate: int = 0
    pending: int = 0
    rejected: list[Rejection] = field(default_factory=list)
    metered: dict[tuple[str | None, bool], list[int]] = field(default_factory=dict)
    """Calls and tokens by model and whether they are estimated."""


_BySource = dict[str, dict[str, UsageEvent]]
"""Events by their source and id."""


def ingest(journal: Journal, batches: Sequence[Sequence[UsageEvent]]) -> list[IngestResult]:
    """Store the batches of several senders together and charge their events. One result for each batch."""
    first: _BySource = {}
    tallies = [_taken(journal, batch, first) for batch in batches]
    if stored := _already_stored(journal, first):
        for tally in tallies:
            _drop(tally, stored)
    if any(tally.fresh for tally in tallies):
        _store(journal, tallies)
    return [
        IngestResult(
            len(tally.fresh),
            tally.duplicate,
            tally.pending,
            tuple(tally.rejected),
            leases_of(journal, {event.source for event in batch}) if journal.state.leases else (),
            journal.state.head,
            _metered(journal, tally),
        )
        for tally, batch in zip(tallies, batches, strict=True)
    ]


def _taken(journal: Journal, batch: Sequence[UsageEvent], first: _BySource) -> _Tally:
    """Reject invalid events, and drop those that this transaction has already; `first` collects the rest."""
    tally = _Tally()
    # The prices of a later time may still change.
    latest = journal.now + MAX_CLOCK_SKEW
    for index, event in enumerate(batch):
        tokens = event.tokens
        if (rejection := _rejection(index, event, tokens, latest)) is not None:
            tally.rejected.append(rejection)
            continue
        of_source = first.get(event.source)
        if of_source is None:
            of_source = first[event.source] = {}
        if event.id in of_source:
            tally.duplicate += 1
            _warn_if_different(event, _payload(of_source[event.id]))
        else:
            of_source[event.id] = event
            tally.fresh.append((event, tokens))
    return tally


def _drop(tally: _Tally, stored: Mapping[tuple[str, str], tuple[Any, ...]]) -> None:
    """Drop the events that earlier transactions stored; `stored` has their payloads."""
    fresh = []
    for event, tokens in tally.fresh:
        payload = stored.get((event.source, event.id))
        if payload is None:
            fresh.append((event, tokens))
        else:
            tally.duplicate += 1
            _warn_if_different(event, payload)
    tally.fresh = fresh


def _rejection(index: int, event: UsageEvent, tokens: CallTokens, latest: datetime) -> Rejection | None:
    if event.time > latest:
        message = (
            f"time {event.time.isoformat()} is more than {MAX_CLOCK_SKEW.seconds // 60} minutes in the "
            "future: set the sender's clock"
        )
        return Rejection(index, event.id, "TimeInFuture", message)
    if event.time < _EARLIEST:
        message = f"time {event.time.isoformat()} is before 1970: set the sender's clock"
        return Rejection(index, event.id, "InvalidUsage", message)
    fault = usage_error(tokens)
    if fault is not None:
        return Rejection(index, event.id, "InvalidUsage", fault)
    return None


def _store(journal: Journal, tallies: Iterable[_Tally]) -> None:
    charging = Charging(journal)
    received_at = journal.recorded_at
    rows: list[tuple[Any, ...]] = []
    for tally in tallies:
        for event, tokens in tally.fresh:
            service = event.service
            occurred_at = to_micros(event.time)
            outcome = charging.charge((event.source, event.id), service, event.model, occurred_at, tokens)
            if not is_charged(outcome):
                tally.pending += 1
            counted = tally.metered.get((event.model, event.estimated))
            if counted is None:
                counted = tally.metered[event.model, event.estimated] = [0, 0]
            counted[0] += 1
            counted[1] += tokens.input + tokens.output
            rows.append(
                (
                    event.source,
                    event.id,
                    f"{service[0]}/{service[1]}",
                    event.model,
                    event.api_key,
                    event.request_id,
                    event.status,
                    occurred_at,
                    received_at,
                    tokens.input,
                    tokens.cached_input,
                    tokens.output,
                    *outcome,
                    tokens.cache_write_input,
                    int(event.estimated),
                    event.duration_ms,
                    event.first_byte_ms,
                )
            )
    charging.post()
    journal.write_last(_INSERT, rows)


def _metered(journal: Journal, tally: _Tally) -> tuple[MeteredCalls, ...]:
    """The stored events by model, without names that the ledger does not know: these have no bound."""
    prices = journal.state.prices
    return tuple(
        MeteredCalls(model if model in prices else "", estimated, calls, tokens)
        for (model, estimated), (calls, tokens) in tally.metered.items()
    )


def _already_stored(journal: Journal, events: _BySource) -> dict[tuple[str, str], tuple[Any, ...]]:
    """Look up the payloads of the events that are stored already, by source and id."""
    look_up = _look_up_array if journal.connection.dialect.name == "postgresql" else _look_up_chunks
    return {
        (source, event_id): tuple(payload)
        for source, of_source in events.items()
        for event_id, *payload in look_up(journal, source, of_source)
    }


def _look_up_array(journal: Journal, source: str, ids: Collection[str]) -> list[tuple[Any, ...]]:
    return _LOOKUP_ALL.rows(journal.connection, (source, list(ids)))


def _look_up_chunks(journal: Journal, source: str, ids: Collection[str]) -> list[tuple[Any, ...]]:
    """Look ids up on SQLite. Ids usually rise (docs/decisions/110), so none above the newest is stored.

    SQLite orders text as Python does; the order of a server depends on its locale.
    """
    if len(ids) > 1:
        ((newest,),) = _NEWEST.rows(journal.connection, (source,))
        ids = [event_id for event_id in ids if event_id <= newest] if newest is not None else []
    found: list[tuple[Any, ...]] = []
    for chunk in _chunks(ids, _CHUNK):
        # Statements exist for a few sizes; the first id fills the remaining parameters.
        size = next(size for size in _LOOKUPS if size >= len(chunk))
        padding = [chunk[0]] * (size - len(chunk))
        found += _LOOKUPS[size].rows(journal.connection, (source, *chunk, *padding))
    return found


def _chunks(items: Iterable[T], size: int) -> Iterable[list[T]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def _payload(event: UsageEvent) -> tuple[Any, ...]:
    return (
        str(event.service),
        event.model,
        to_micros(event.time),
        *event.tokens,
    )


def _warn_if_different(event: UsageEvent, first: tuple[Any, ...]) -> None:
    if _payload(event) != first:
        _log.warning(
            "usage.payload_differs",
            source=event.source,
            id=event.id,
            service=str(event.service),
        )


def charge_pending(journal: Journal, services: Iterable[ObjectKey], waited_for: Iterable[str]) -> int:
    """Charge the pending events of these services, and those that wait for these accounts or models.

    They are charged in the order of arrival, which decides who gets the free quota (B6). Returns the number
    of charged events. The others remain pending, with what they wait for now.
    """
    ((any_pending,),) = _ANY_PENDING.rows(journal.connection, ())
    if not any_pending:
        return 0
    found: set[int] = set()
    for condition, keys in ((_OF_SERVICES, map(str, services)), (_WAITING_FOR, iter(waited_for))):
        for chunk in _chunks(keys, _CHUNK):
            found.update(journal.connection.execute(condition, {"keys": chunk}).scalars())
    charged = 0
    for page in _chunks(sorted(found), _PENDING_PAGE):
        charged += _charge_page(journal, journal.connection.execute(_BY_ID, {"ids": page}).all())
    return charged


def _charge_page(journal: Journal, page: Sequence[Row[*tuple[Any, ...]]]) -> int:
    charging = Charging(journal)
    changes: list[tuple[Any, ...]] = []
    charged = 0
    for row in page:
        outcome = charging.charge(
            (row.source, row.event_id),
            ObjectKey.parse(row.service),
            row.model,
            row.occurred_at,
            stored_tokens(row),
        )
        charged += is_charged(outcome)
        if is_charged(outcome) or outcome[4:6] != (row.pending_reason, row.waiting_for):
            changes.append((*outcome, row.id))
    charging.post()
    journal.flush()
    if changes:
        journal.run_many(_UPDATE_OUTCOME, changes)
    return charged


def stored_tokens(row: Row[*tuple[Any, ...]]) -> CallTokens:
    """The tokens of the call in a row of `usage_events`."""
    return CallTokens(
        row.input_tokens, row.cached_input_tokens, row.cache_write_input_tokens, row.output_tokens
    )


def pending_event(row: Row[*tuple[Any, ...]]) -> PendingEvent:
    """The pending event in a row of `usage_events`."""
    event = UsageEvent(
        source=row.source,
        id=row.event_id,
        service=ObjectKey.parse(row.service),
        time=from_micros(row.occurred_at),
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        cached_input_tokens=row.cached_input_tokens,
        model=row.model,
        api_key=row.api_key,
        request_id=row.request_id,
        status=row.status,
        cache_write_input_tokens=row.cache_write_input_tokens,
        estimated=bool(row.estimated),
        duration_ms=row.duration_ms,
        first_byte_ms=row.first_byte_ms,
    )
    return PendingEvent(row.id, event, from_micros(row.received_at), row.pending_reason, row.waiting_for)


_events = tables.usage_events.c
_PAYLOAD = (
    _events.service,
    _events.model,
    _events.occurred_at,
    _events.input_tokens,
    _events.cached_input_tokens,
    _events.cache_write_input_tokens,
    _events.output_tokens,
)
_IS_PENDING = _events.transaction_sequence.is_(None)
_KEYS: BindParameter[str] = bindparam("keys", expanding=True)

_INSERT = BulkInsert(
    tables.usage_events,
    (
        "source",
        "event_id",
        "service",
        "model",
        "api_key",
        "request_id",
        "status",
        "occurred_at",
        "received_at",
        "input_tokens",
        "cached_input_tokens",
        "output_tokens",
        *OUTCOME_COLUMNS,
        "cache_write_input_tokens",
        "estimated",
        "duration_ms",
        "first_byte_ms",
    ),
)


_NEWEST = Prepared(select(func.max(_events.event_id)).where(_events.source == bindparam("of")), ["of"])
_STORED = select(_events.event_id, *_PAYLOAD).where(_events.source == bindparam("of"))


def _lookup(size: int) -> Prepared:
    names = [f"id_{number}" for number in range(size)]
    return Prepared(_STORED.where(_events.event_id.in_(map(bindparam, names))), ["of", *names])


_LOOKUP_ALL = Prepared(
    _STORED.where(_events.event_id == any_(bindparam("ids", type_=ARRAY(Text)))), ["of", "ids"]
)
_LOOKUPS = {size: _lookup(size) for size in (1, 20, 100, _CHUNK)}
_ANY_PENDING = Prepared(select(select(_events.id).where(_IS_PENDING).exists()), ())
_PENDING_IDS = select(_events.id).where(_IS_PENDING)
_OF_SERVICES = _PENDING_IDS.where(_events.service.in_(_KEYS))
_WAITING_FOR = _PENDING_IDS.where(_events.waiting_for.in_(_KEYS))
_BY_ID = (
    select(tables.usage_events).where(_events.id.in_(bindparam("ids", expanding=True))).order_by(_events.id)
)
_NEW_OUTCOME: dict[str, BindParameter[Any]] = {name: bindparam(f"new_{name}") for name in OUTCOME_COLUMNS}
_UPDATE_OUTCOME = Prepared(
    update(tables.usage_events).values(_NEW_OUTCOME).where(_events.id == bindparam("row_id"), _IS_PENDING),
    [*(parameter.key for parameter in _NEW_OUTCOME.values()), "row_id"],
)

PENDING_LIST = (
    select(tables.usage_events)
    .where(_IS_PENDING, _events.id > bindparam("after"))
    .order_by(_events.id)
    .limit(bindparam("at_most"))
)
