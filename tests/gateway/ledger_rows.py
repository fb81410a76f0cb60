"""The rows that a ledger has recorded of the gateway's calls."""

from sqlalchemy import text

from tests.ledger.databases import Database


def stored(database: Database) -> list[str]:
    """The calls of all events in the ledger, sorted."""
    with database.raw() as connection:
        return sorted(str(row[0]) for row in connection.execute(text("SELECT request_id FROM usage_events")))
