"""Reads single calls: a list, the newest first, and the look-up of one by its request id (B32)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    bindparam,
    func,
    or_,
    select,
    tuple_,
    union,
)

from farebox.clock import from_micros, to_micros
from farebox.domain.billing.money import Nano
from farebox.domain.billing.pricing import cache_write_price, tier_of
from farebox.domain.keys import ObjectKey
from farebox.ledger.booking.request_index import events_of_request
from farebox.ledger.db import tables
from farebox.meterapi.calls import Call, CallPrice, CallQuery
from farebox.meterapi.types import TokenPriceTier

_FIRST_WINDOW: Final = 60_000_000
"""Microseconds. Windows grow, so that a page of a busy service does not sort the calls of three months."""
_Row = Row[*tuple[Any, ...]]


class CallPlace(NamedTuple):
    """The position of a call in a list: its end in microseconds, and its number."""

    occurred_at: int
    id: int


@dataclass(frozen=True, slots=True)
class ReadCalls:
    """The calls of a page. `next` is the place of the last one, or None on the last page."""

    calls: Sequence[Call]
    next: CallPlace | None


def read_calls(
    connection: Connection, query: CallQuery, limit: int, after: CallPlace | None = None
) -> ReadCalls:
    """Read at most `limit` calls that come after a place, from the connection's snapshot."""
    statement = _CALLS.where(*_filters(query))
    if after is not None:
        statement = statement.where(tuple_(_events.occurred_at, _events.id) < tuple_(*after))
    statement = statement.order_by(_events.occurred_at.desc(), _events.id.desc())
    found: list[_Row] = []
    for start, end in _windows(query, after):
        within = statement.where(_events.occurred_at >= start, _events.occurred_at < end)
        found += connection.execute(within.limit(limit + 1 - len(found))).all()
        if len(found) > limit:
            break
    rows, more = found[:limit], len(found) > limit
    place = CallPlace(rows[-1].occurred_at, rows[-1].id) if more else None
    return ReadCalls(_calls(connection, rows), place)


def read_call(connection: Connection, owner: ObjectKey | str, request_id: str) -> Call | None:
    """Find a call of an account or a namespace by its request id; None if none is stored.

    Request ids are unique where Envoy makes them. Of several calls with one id, one is returned.
    """
    events = events_of_request(connection, request_id)
    if not events:
        return None
    found = connection.execute(_CALLS.where(_events.id.in_(events), *_owned(owner)).limit(1))
    return next(iter(_calls(connection, found)), None)


def _windows(query: CallQuery, after: CallPlace | None) -> Iterator[tuple[int, int]]:
    """Windows of time from the newest to the oldest, each twice as long as the one before."""
    start, end = to_micros(query.start), to_micros(query.end)
    if after is not None:
        end = min(end, after.occurred_at + 1)
    size = _FIRST_WINDOW
    while end > start:
        yield max(start, end - size), end
        end, size = end - size, size * 2


def _filters(query: CallQuery) -> list[ColumnElement[bool]]:
    conditions = _owned(query.owner)
    if query.services is not None:
        conditions.append(_events.service.in_(sorted(map(str, query.services))))
    if query.model is not None:
        conditions.append(func.coalesce(_bindings.model, _events.model) == query.model)
    for column, value in (
        (_events.api_key, query.api_key),
        (_events.status, query.status),
        (_events.estimated, None if query.estimated is None else int(query.estimated)),
    ):
        if value is not None:
            conditions.append(column == value)
    return conditions


def _owned(owner: ObjectKey | str) -> list[ColumnElement[bool]]:
    """The calls of an account, or of the services in a namespace.

    The services are a subquery, so that the index of calls by service and time is used. A pending call has no
    account yet: it belongs to those that ever paid for its service.
    """
    known = tables.bindings.alias("known").c
    if isinstance(owner, ObjectKey):
        services = select(known.service).where(known.account == str(owner))
        is_its_own = or_(_bindings.account == str(owner), _events.binding_id.is_(None))
        return [_events.service.in_(services), is_its_own]
    waiting = tables.usage_events.alias("waiting").c
    prefix = f"{owner}/"
    of_namespace = union(
        select(known.service).where(_starts_with(known.service, prefix)),
        select(waiting.service).where(
            waiting.transaction_sequence.is_(None), _starts_with(waiting.service, prefix)
        ),
    )
    return [_events.service.in_(of_namespace)]


def _starts_with(service: ColumnElement[str], prefix: str) -> ColumnElement[bool]:
    """Compare a prefix. LIKE ignores case on SQLite."""
    return func.substr(service, 1, len(prefix)) == prefix


def _calls(connection: Connection, rows: Iterable[_Row]) -> list[Call]:
    rows = list(rows)
    versions = sorted({row.price_version_id for row in rows} - {None})
    tiers: dict[int, list[TokenPriceTier]] = {version: [] for version in versions}
    if versions:
        for version, *tier in connection.execute(_TIERS, {"versions": versions}):
            tiers[version].append(TokenPriceTier(*tier))
    return [_call(row, tiers) for row in rows]


def _call(row: _Row, tiers: dict[int, list[TokenPriceTier]]) -> Call:
    return Call(
        source=row.source,
        id=row.event_id,
        request_id=row.request_id,
        time=from_micros(row.occurred_at),
        received_at=from_micros(row.received_at),
        service=ObjectKey.parse(row.service),
        model=row.bound_model or row.model,
        api_key=row.api_key,
        status=row.status,
        input_tokens=row.input_tokens,
        cached_input_tokens=row.cached_input_tokens,
        cache_write_input_tokens=row.cache_write_input_tokens,
        output_tokens=row.output_tokens,
        estimated=bool(row.estimated),
        duration_ms=row.duration_ms,
        first_byte_ms=row.first_byte_ms,
        reservation_input_tokens=row.reservation_input,
        reservation_output_tokens=row.reservation_output,
        free_quota_tokens=row.quota_tokens,
        account=None if row.account is None else ObjectKey.parse(row.account),
        trial=bool(row.trial),
        price=_price(row, tiers.get(row.price_version_id, ())),
        charge=None if row.charge is None else Nano(row.charge),
        currency=row.currency,
        pending_reason=row.pending_reason,
        waiting_for=row.waiting_for,
    )


def _price(row: _Row, tiers: Sequence[TokenPriceTier]) -> CallPrice | None:
    """The tier that prices the call; None for a pending one."""
    tier = tier_of(tiers, row.input_tokens)
    if tier is None:
        return None
    return CallPrice(
        version=row.price_version_id,
        effective_at=from_micros(row.effective_at),
        up_to_input_tokens=tier.up_to_input_tokens,
        input=tier.input,
        cached_input=tier.cached_input,
        cache_write=cache_write_price(tier),
        output=tier.output,
    )


_events = tables.usage_events.c
_bindings = tables.bindings.c
_versions = tables.price_versions.c
_tiers = tables.price_tiers.c
_CALLS: Final = (
    select(
        *_events,
        _bindings.model.label("bound_model"),
        _bindings.account,
        _bindings.trial,
        _versions.currency,
        _versions.effective_at,
    )
    .select_from(tables.usage_events)
    .outerjoin(tables.bindings, _bindings.id == _events.binding_id)
    .outerjoin(tables.price_versions, _versions.id == _events.price_version_id)
)
_TIERS: Final = (
    select(_tiers.price_version_id, *(c for c in _tiers if c.name not in ("price_version_id", "position")))
    .where(_tiers.price_version_id.in_(bindparam("versions", expanding=True)))
    .order_by(_tiers.price_version_id, _tiers.position)
)
