"""Reads the usage of an account or a namespace, summed by time, service, model and key (B19).

Only charged calls count. All pages of a report are read at one number of the ledger: later commits are in
none of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Integer,
    Row,
    Select,
    Text,
    and_,
    bindparam,
    func,
    select,
    tuple_,
)

from farebox.clock import from_micros, to_micros
from farebox.domain.keys import ObjectKey
from farebox.errors import LedgerRefused
from farebox.ledger.db import tables
from farebox.ledger.feed import written_at
from farebox.ledger.reports.sums import exact_sum, joined
from farebox.meterapi.reports import Bucket, Group, UsageQuery, UsageRow

_WIDTHS: Final = {Bucket.MINUTE: 60_000_000, Bucket.HOUR: 3_600_000_000, Bucket.DAY: 86_400_000_000}
Place = tuple[int | str, ...]
"""The position of a row in a report: the start of its bucket in microseconds, if there are buckets, then the
values that it is grouped by, then the currency."""


class AsOf(NamedTuple):
    """The ledger's number at which a report is read, and when it was written, in microseconds (0: never).

    A ledger that was restored from a backup assigns numbers again, at other times (docs/decisions/109).
    """

    sequence: int
    written_at: int


@dataclass(frozen=True, slots=True)
class UsagePage:
    """Rows in the order of their places. `next` is the place of the last row, or None on the last page.

    `pending` calls are stored but not charged.
    """

    rows: Sequence[UsageRow]
    as_of: AsOf
    pending: int
    next: Place | None


def read_usage(
    connection: Connection,
    query: UsageQuery,
    limit: int,
    after: Place | None = None,
    as_of: AsOf | None = None,
) -> UsagePage:
    """Read at most `limit` rows after a place, from the connection's snapshot.

    Args:
        as_of: the one of the first page; None for the first page.

    Raises:
        LedgerRefused: CursorExpired, if the ledger was restored from a backup since the first page.
    """
    sequence = (
        connection.execute(select(tables.ledger.c.head)).scalar_one() if as_of is None else as_of.sequence
    )
    found_at = written_at(connection, [sequence]).get(sequence)
    here = AsOf(sequence, 0 if found_at is None else to_micros(found_at))
    if as_of not in (None, here):
        raise LedgerRefused(
            "CursorExpired", "The ledger was restored from a backup: start again without cursor"
        )
    shape, values = _shape(query), _values(query) | {"as_of": sequence}
    values |= {f"after_{place}": value for place, value in enumerate(after or ())}
    sums = _sums(shape, goes_on=after is not None)
    found: list[Row[*tuple[Any, ...]]] = []
    for start, end in _windows(query, limit, after):
        window = {"start": start, "end": end, "at_most": limit + 1 - len(found)}
        if query.bucket is Bucket.MONTH:
            window["month"] = to_micros(_month_of(start))
        found += connection.execute(sums, values | window)
        if len(found) > limit:
            break
    rows, more = found[:limit], len(found) > limit
    place = tuple(getattr(rows[-1], name) for name in _key_names(shape)) if more else None
    pending = connection.execute(_pending(shape), _values(query)).scalar_one()
    return UsagePage([_row(query, row) for row in rows], here, pending, place)


def _windows(query: UsageQuery, limit: int, after: Place | None) -> Iterator[tuple[int, int]]:
    """Windows of whole buckets, small at first: a page of minutes need not sum up three months."""
    start, end = to_micros(query.start), to_micros(query.end)
    if query.bucket is Bucket.NONE:
        yield start, end
        return
    if after is not None:
        start = max(start, int(after[0]))
    size = limit // 4 + 1
    while start < end:
        bound = _bound(query.bucket, start, size)
        yield start, min(bound, end)
        start, size = bound, size * 2


def _bound(bucket: Bucket, moment: int, size: int) -> int:
    """The end of `size` buckets from the one with this moment on; of a single month for months."""
    if bucket is not Bucket.MONTH:
        width = _WIDTHS[bucket]
        return moment - moment % width + size * width
    day = _month_of(moment)
    year, month = divmod(day.year * 12 + day.month, 12)
    return to_micros(day.replace(year=year, month=month + 1))


def _month_of(moment: int) -> datetime:
    return from_micros(moment).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


class _Shape(NamedTuple):
    """The part of a query that determines its SQL statements; the rest are values."""

    of_account: bool
    group_by: frozenset[Group]
    bucket: Bucket
    of_services: bool
    of_model: bool
    of_api_key: bool


def _shape(query: UsageQuery) -> _Shape:
    return _Shape(
        isinstance(query.owner, ObjectKey),
        query.group_by,
        query.bucket,
        query.services is not None,
        query.model is not None,
        query.api_key is not None,
    )


def _values(query: UsageQuery) -> dict[str, Any]:
    """The parameters of a query's statements, except those of the window and the page."""
    owner = str(query.owner) if isinstance(query.owner, ObjectKey) else f"{query.owner}/"
    values = {
        "owner": owner,
        "owner_length": len(owner),
        "start": to_micros(query.start),
        "end": to_micros(query.end),
    }
    services = None if query.services is None else sorted(map(str, query.services))
    given = {"of_services": services, "of_model": query.model, "of_api_key": query.api_key}
    return values | {name: value for name, value in given.items() if value is not None}


def _key_names(shape: _Shape) -> list[str]:
    buckets = [] if shape.bucket is Bucket.NONE else ["bucket"]
    return [*buckets, *(_GROUPS[group] for group in Group if group in shape.group_by), "currency"]


@cache
def _sums(shape: _Shape, *, goes_on: bool) -> Select[*tuple[Any, ...]]:
    """The rows of a window, with `goes_on` those after a place.

    The calls are a subquery because PostgreSQL treats a repeated expression with parameters as two
    expressions.
    """
    columns: dict[str, ColumnElement[Any]] = {
        "bucket": _bucket(shape.bucket),
        "service": _events.service,
        "model": _bindings.model,
        "api_key": func.coalesce(_events.api_key, ""),
        "currency": _accounts.currency,
    }
    names = _key_names(shape)
    calls = (
        select(*(columns[name].label(name) for name in names), *_FIGURES, *_CHARGES)
        .join_from(tables.usage_events, tables.bindings, _bindings.id == _events.binding_id)
        .join(tables.accounts, _accounts.key == _bindings.account)
        .where(*_IN_WINDOW, _events.transaction_sequence <= bindparam("as_of"), *_filters(shape))
        .subquery()
    )
    keys = [calls.c[name] for name in names]
    statement = (
        select(
            *keys,
            func.count().label("calls"),
            *(func.sum(calls.c[column.name]).label(column.name) for column in _FIGURES),
            *exact_sum(calls.c.charge, "charge"),
            *exact_sum(calls.c.estimated_charge, "estimated_charge"),
        )
        .group_by(*keys)
        .order_by(*keys)
        .limit(bindparam("at_most"))
    )
    if goes_on:
        values = [bindparam(f"after_{place}", type_=key.type) for place, key in enumerate(keys)]
        statement = statement.where(tuple_(*keys) > tuple_(*values))
    return statement


def _bucket(bucket: Bucket) -> ColumnElement[Any]:
    """The beginning of a call's bucket. A window of months is a single month with a known beginning."""
    if bucket in _WIDTHS:
        return _events.occurred_at - _events.occurred_at % _WIDTHS[bucket]
    return bindparam("month", type_=tables.Int64)


def _filters(shape: _Shape) -> list[ColumnElement[bool]]:
    """Limit the query to the owner's services, so that it uses the index of calls by service and time."""
    known = tables.bindings.alias("known").c
    services = select(known.service).where(_owned(shape, known.account, known.service))
    conditions = [_owned(shape, _bindings.account, _bindings.service)]
    if shape.of_services:
        conditions.append(_events.service.in_(_SERVICES))
    else:
        conditions.append(_events.service.in_(services))
    if shape.of_model:
        conditions.append(_bindings.model == bindparam("of_model"))
    if shape.of_api_key:
        conditions.append(_events.api_key == bindparam("of_api_key"))
    return conditions


def _owned(shape: _Shape, account: ColumnElement[str], service: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a binding belongs to the account, or to a service in the namespace."""
    return account == bindparam("owner") if shape.of_account else _in_namespace(service)


def _in_namespace(service: ColumnElement[str]) -> ColumnElement[bool]:
    """Compare a prefix. LIKE ignores case on SQLite."""
    return func.substr(service, 1, bindparam("owner_length", type_=Integer)) == bindparam("owner")


@cache
def _pending(shape: _Shape) -> Select[*tuple[int]]:
    """Count the pending calls of the owner's services. A call that names no model matches every model."""
    conditions = [_events.transaction_sequence.is_(None), *_IN_WINDOW]
    if shape.of_account:
        owned = select(_bindings.service).where(_bindings.account == bindparam("owner"))
        conditions.append(_events.service.in_(owned))
    else:
        conditions.append(_in_namespace(_events.service))
    if shape.of_services:
        conditions.append(_events.service.in_(_SERVICES))
    if shape.of_model:
        model = bindparam("of_model", type_=Text)
        conditions.append(func.coalesce(_events.model, model) == model)
    if shape.of_api_key:
        conditions.append(_events.api_key == bindparam("of_api_key"))
    return select(func.count()).select_from(tables.usage_events).where(and_(*conditions))


def _row(query: UsageQuery, row: Row[*tuple[Any, ...]]) -> UsageRow:
    has_bucket = query.bucket is not Bucket.NONE
    by = query.group_by
    return UsageRow(
        start=from_micros(row.bucket) if has_bucket else None,
        service=row.service if Group.SERVICE in by else None,
        model=row.model if Group.MODEL in by else None,
        api_key=row.api_key if Group.API_KEY in by else None,
        currency=row.currency,
        calls=row.calls,
        input_tokens=int(row.input_tokens),
        cached_input_tokens=int(row.cached_input_tokens),
        output_tokens=int(row.output_tokens),
        reservation_input_tokens=int(row.reservation_input),
        reservation_output_tokens=int(row.reservation_output),
        free_quota_tokens=int(row.quota_tokens),
        charge=joined(row.charge_units, row.charge_nano),
        cache_write_input_tokens=int(row.cache_write_input_tokens),
        estimated_calls=int(row.estimated),
        estimated_tokens=int(row.estimated_tokens),
        estimated_charge=joined(row.estimated_charge_units, row.estimated_charge_nano),
    )


_events = tables.usage_events.c
_bindings = tables.bindings.c
_accounts = tables.accounts.c
_SERVICES: Final[BindParameter[str]] = bindparam("of_services", expanding=True)
_IN_WINDOW: Final = (_events.occurred_at >= bindparam("start"), _events.occurred_at < bindparam("end"))
_GROUPS: Final = {Group.SERVICE: "service", Group.MODEL: "model", Group.API_KEY: "api_key"}
_FIGURES: Final = (
    _events.input_tokens,
    _events.cached_input_tokens,
    _events.output_tokens,
    _events.reservation_input,
    _events.reservation_output,
    _events.quota_tokens,
    _events.cache_write_input_tokens,
    _events.estimated,
    (_events.estimated * (_events.input_tokens + _events.output_tokens)).label("estimated_tokens"),
)
_CHARGES: Final = (_events.charge, (_events.estimated * _events.charge).label("estimated_charge"))
