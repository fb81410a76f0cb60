"""Indexes usage events by request id, a segment at a time (B32).

Request ids are random, so an index that every event updates would make storing events half as fast
(docs/decisions/531). Instead the events of a segment are sorted once and appended. A look-up tries each
segment, and reads the events after the last one.
"""

from typing import Final

from sqlalchemy import BindParameter, ColumnElement, Connection, bindparam, func, literal_column, select

from farebox.ledger.db import tables
from farebox.ledger.db.prepared import Prepared

SEGMENT_EVENTS: Final = 20_000
"""Events of a segment. Sorting them holds the writer for some hundredths of a second."""


def segment_is_due(connection: Connection, events: int) -> bool:
    """Whether a segment's number of events is not indexed yet. Ids can have gaps, so it may be fewer."""
    ((newest, last),) = _ENDS.rows(connection, ())
    return bool(newest - last >= events)


def index_segment(connection: Connection, events: int) -> bool:
    """Index the next segment if it is due; returns whether it was. The transaction has locked the ledger."""
    ((newest, last),) = _ENDS.rows(connection, ())
    if newest - last < events:
        return False
    end = last + events
    _ADD_SEGMENT.run(connection, (end,))
    _ADD_REQUESTS.run(connection, (end, last, end))
    return True


def events_of_request(connection: Connection, request_id: str) -> list[int]:
    """The ids of the usage events with a request id, in any order."""
    ((_, last),) = _ENDS.rows(connection, ())
    rows = _TAIL.rows(connection, (last, request_id)) + _INDEXED.rows(connection, (request_id,))
    return [event for (event,) in rows]


_events = tables.usage_events.c
_segments = tables.request_segments.c
_requests = tables.requests.c
_END = bindparam("end", type_=tables.Int64)
_LAST = bindparam("last", type_=tables.Int64)
_ZERO: ColumnElement[int] = literal_column("0")
_REQUEST: BindParameter[str] = bindparam("request_id")
_ENDS = Prepared(
    select(
        select(func.coalesce(func.max(_events.id), _ZERO)).scalar_subquery(),
        select(func.coalesce(func.max(_segments.last_event), _ZERO)).scalar_subquery(),
    ),
    (),
)
_ADD_SEGMENT = Prepared.insert(tables.request_segments)
_ADD_REQUESTS = Prepared(
    tables.requests.insert().from_select(
        ["segment", "request_id", "event"],
        select(_END, _events.request_id, _events.id)
        .where(_events.id > _LAST, _events.id <= _END, _events.request_id.is_not(None))
        .order_by(_events.request_id, _events.id),
    ),
    ("end", "last", "end"),
)
_TAIL = Prepared(
    select(_events.id).where(_events.id > _LAST, _events.request_id == _REQUEST), ("last", "request_id")
)
_INDEXED = Prepared(
    select(_requests.event)
    .join_from(tables.request_segments, tables.requests, _requests.segment == _segments.last_event)
    .where(_requests.request_id == _REQUEST),
    ("request_id",),
)
