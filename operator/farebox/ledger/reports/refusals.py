"""Reads the counts of refused calls, summed over gateways and by bucket (B32)."""

from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, Connection, Select, func, literal, select

from farebox.clock import from_micros, to_micros
from farebox.errors import LedgerRefused
from farebox.ledger.booking.refusals import MICROS_PER_MINUTE
from farebox.ledger.db import tables
from farebox.meterapi.refusals import RefusalQuery, RefusalRow
from farebox.meterapi.reports import Bucket

MAX_ROWS: Final = 10_000
_MINUTES: Final = {Bucket.MINUTE: 1, Bucket.HOUR: 60, Bucket.DAY: 24 * 60}


def read_refusals(connection: Connection, query: RefusalQuery, max_rows: int = MAX_ROWS) -> list[RefusalRow]:
    """Read the rows, the newest bucket first, then the largest count.

    Raises:
        LedgerRefused: ReportTooLong, above `max_rows` rows.
    """
    found = connection.execute(_select(query).limit(max_rows + 1)).all()
    if len(found) > max_rows:
        raise LedgerRefused(
            "ReportTooLong",
            f"The report has more than {max_rows} rows: request a shorter period, a longer bucket or filters",
        )
    return [
        RefusalRow(
            start=None if query.bucket is Bucket.NONE else from_micros(row.bucket * MICROS_PER_MINUTE),
            namespace=row.namespace,
            service=row.service or None,
            api_key=row.api_key or None,
            code=row.code,
            status=row.status,
            count=int(row.total),
        )
        for row in found
    ]


def _select(query: RefusalQuery) -> Select[*tuple[object, ...]]:
    labels = (_refusals.namespace, _refusals.service, _refusals.api_key, _refusals.code, _refusals.status)
    conditions = [_refusals.minute >= _minute(query.start), _refusals.minute < _minute(query.end)]
    for column, value in (
        (_refusals.namespace, query.namespace),
        (_refusals.service, query.service),
        (_refusals.api_key, query.api_key),
        (_refusals.code, query.code),
    ):
        if value is not None:
            conditions.append(column == value)
    counted = select(_bucket(query.bucket), *labels, _refusals.count).where(*conditions).subquery()
    keys = [counted.c[name] for name in ("bucket", *(label.name for label in labels))]
    total = func.sum(counted.c["count"]).label("total")
    return select(*keys, total).group_by(*keys).order_by(keys[0].desc(), total.desc(), *keys[1:])


def _minute(moment: datetime) -> int:
    """The first minute that begins at a moment or after it."""
    return -(-to_micros(moment) // MICROS_PER_MINUTE)


def _bucket(bucket: Bucket) -> ColumnElement[int]:
    if bucket is Bucket.NONE:
        return literal(0, tables.Int64).label("bucket")
    return (_refusals.minute - _refusals.minute % _MINUTES[bucket]).label("bucket")


_refusals = tables.refusals.c
