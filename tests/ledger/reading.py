"""Reads reports for tests: page by page, and with independent buckets."""

from datetime import datetime

from sqlalchemy import Connection

from farebox.ledger.reports.usage import AsOf, Place, read_usage
from farebox.meterapi.reports import Bucket, UsageQuery, UsageRow


def paged(connection: Connection, query: UsageQuery, limit: int) -> tuple[list[UsageRow], int]:
    """The rows of all pages of a report, and the number of pending calls."""
    rows: list[UsageRow] = []
    after: Place | None = None
    as_of: AsOf | None = None
    while True:
        page = read_usage(connection, query, limit, after, as_of)
        assert len(page.rows) <= limit
        rows += page.rows
        after, as_of = page.next, page.as_of
        if after is None:
            return rows, page.pending


def truncated(moment: datetime, bucket: Bucket) -> datetime | None:
    """The beginning of the bucket with this moment."""
    zero: dict[str, int] = {"second": 0, "microsecond": 0}
    match bucket:
        case Bucket.NONE:
            return None
        case Bucket.HOUR:
            zero |= {"minute": 0}
        case Bucket.DAY:
            zero |= {"minute": 0, "hour": 0}
        case Bucket.MONTH:
            zero |= {"minute": 0, "hour": 0, "day": 1}
    return moment.replace(**zero)  # type: ignore[arg-type]
