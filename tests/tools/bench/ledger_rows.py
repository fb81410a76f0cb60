"""Inserts of rows without the ledger's code: the same rows again as the speed limit, and many rows at once.

Both keep what the ledger keeps: the same tables, indexes and checks; only foreign keys are off.
"""

import threading
import time
from contextlib import ExitStack
from itertools import pairwise
from typing import Any, Literal

from sqlalchemy import Connection, Table, func, insert, select, text, update

from farebox.ledger.db import tables
from farebox.ledger.db.connections import disposing, write_engine

_KEYS = {
    tables.transactions: tables.transactions.c.sequence,
    tables.entries: tables.entries.c.transaction_sequence,
    tables.usage_events: tables.usage_events.c.id,
}
"""The tables that usage adds rows to, in the order that foreign keys would need; and what rises."""

_HOUR_MS = 3_600_000
Ids = Literal["rising", "random"]
Rows = list[tuple[Any, ...]]


class BareInserts:
    """Inserts into `target` what the ledger has added to `source`, by a number of concurrent clients."""

    def __init__(self, source: str, target: str, clients: int) -> None:
        self._stack = ExitStack()
        self._source = self._connect(source)
        self._targets = [self._connect(target) for _ in range(clients)]
        for connection in self._targets:
            _without_foreign_keys(connection)
        self._seen = dict.fromkeys(_KEYS, 0)

    def _connect(self, url: str) -> Connection:
        engine = self._stack.enter_context(disposing(write_engine(url)))
        return self._stack.enter_context(engine.connect())

    def close(self) -> None:
        """Close all connections."""
        self._stack.close()

    def insert_new_rows(self, commits: int) -> float:
        """Insert the rows that are new since the last call, in `commits` commits; returns the seconds."""
        shares = {table: _shares(rows, commits) for table, rows in self._new_rows().items()}
        works = [[{table: parts[commit] for table, parts in shares.items()} for commit in range(commits)]]
        works = [works[0][number :: len(self._targets)] for number in range(len(self._targets))]
        threads = [
            threading.Thread(target=_insert, args=pair) for pair in zip(self._targets, works, strict=True)
        ]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.monotonic() - started

    def _new_rows(self) -> dict[Table, Rows]:
        found: dict[Table, Rows] = {}
        with self._source.begin():
            for table, key in _KEYS.items():
                rows = self._source.execute(select(table).where(key > self._seen[table]).order_by(key)).all()
                found[table] = [tuple(row) for row in rows]
                self._seen[table] = getattr(rows[-1], key.name)
        return found


def _insert(connection: Connection, commits: list[dict[Table, Rows]]) -> None:
    driver: Any = connection.connection.driver_connection
    is_sqlite = connection.dialect.name == "sqlite"
    cursor = driver.cursor()
    for parts in commits:
        if is_sqlite:
            cursor.execute("BEGIN IMMEDIATE")
        for table, rows in parts.items():
            if rows:
                places = ", ".join(["?" if is_sqlite else "%s"] * len(table.columns))
                cursor.executemany(f"INSERT INTO {table.name} VALUES ({places})", rows)
        driver.commit()


def _without_foreign_keys(connection: Connection) -> None:
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        driver.execute("PRAGMA foreign_keys = OFF")
    else:
        driver.execute("SET session_replication_role = replica")
        driver.commit()


def _shares(rows: Rows, commits: int) -> list[Rows]:
    """The rows in order, in one part for each commit; the parts have nearly the same size."""
    cuts = [round(len(rows) * i / commits) for i in range(commits + 1)]
    return [rows[start:end] for start, end in pairwise(cuts)]


def fill(url: str, rows: int, ids: Ids) -> None:
    """Insert charged events up to `rows`, posted in one transaction, so that `verify` finds no fault.

    They are like the last one that the ledger charged, and came before it. Random ids are those that lie
    evenly among random ones: three of four are inserted in order, then the others between them, which leaves
    the index as full as random ids do. Really random ones would take an hour.
    """
    with disposing(write_engine(url)) as engine:
        with engine.begin() as connection:
            missing = rows - connection.execute(select(func.count()).select_from(_usage)).scalar_one()
            if missing <= 0:
                return
            _without_foreign_keys(connection)
            dialect = connection.dialect.name
            values = {"sequence": _book(connection, missing), "missing": missing}
            if ids == "random":
                values |= {"first": 0, "step": 2**48 // missing}
            else:
                values |= {"first": time.time_ns() // 1_000_000 - missing - _HOUR_MS, "step": 1}
            for part in ("n % 4 <> 0", "n % 4 = 0") if ids == "random" else ("n > 0",):
                events = _EVENTS.format(series=_SERIES[dialect], hexadecimal=_HEX[dialect], part=part)
                connection.execute(text(events), values)
        with engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            if dialect == "postgresql":
                driver.autocommit = True
            for statement in _SETTLING[dialect]:
                driver.execute(statement)


def _book(connection: Connection, count: int) -> int:
    """Post `count` charges like the last one; returns the number of their transaction."""
    last = connection.execute(select(_usage).where(_usage.c.charge > 0).order_by(_usage.c.id.desc())).first()
    assert last is not None, "the ledger has charged something"
    was = tables.transactions.c.sequence == last.transaction_sequence
    like = connection.execute(select(tables.transactions).where(was)).one()._asdict()
    sequence: int = connection.execute(select(tables.ledger.c.head)).scalar_one() + 1
    new = {"sequence": sequence, "idempotency_key": f"fill:{sequence}"}
    connection.execute(insert(tables.transactions), like | new)
    of_last = tables.entries.c.transaction_sequence == last.transaction_sequence
    for entry in connection.execute(select(tables.entries).where(of_last)).all():
        amount = last.charge * count if entry.amount > 0 else -last.charge * count
        values = {"transaction_sequence": sequence, "book_id": entry.book_id, "amount": amount}
        connection.execute(insert(tables.entries), values)
    accounts, ledger = tables.accounts, tables.ledger
    balance = accounts.c.balance - last.charge * count
    moved = update(accounts).where(accounts.c.id == like["account_id"])
    connection.execute(moved.values(balance=balance, sequence=sequence))
    connection.execute(update(ledger).values(head=sequence, revision=ledger.c.revision + 1))
    return sequence


_usage = tables.usage_events
_EVENTS = """
INSERT INTO usage_events (source, event_id, service, model, api_key, request_id, status, occurred_at,
    received_at, input_tokens, cached_input_tokens, output_tokens, transaction_sequence, binding_id,
    price_version_id, charge)
SELECT source, {hexadecimal} || substr(event_id, 13),
    service, model, api_key, request_id, status,
    occurred_at - 1000 * (:missing - n), received_at, input_tokens, cached_input_tokens, output_tokens,
    CAST(:sequence AS bigint), binding_id, price_version_id, charge
FROM ({series}) AS s, (SELECT * FROM usage_events WHERE charge > 0 ORDER BY id DESC LIMIT 1) AS e
WHERE {part}
"""
_SERIES = {
    "postgresql": "SELECT n FROM generate_series(1, CAST(:missing AS bigint)) AS s (n)",
    "sqlite": "WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < :missing)"
    " SELECT n FROM s",
}
_HEX = {
    "postgresql": "lpad(to_hex(CAST(:first AS bigint) + n * CAST(:step AS bigint)), 12, '0')",
    "sqlite": "printf('%012x', :first + n * :step)",
}
_SETTLING = {"postgresql": ("VACUUM ANALYZE", "CHECKPOINT"), "sqlite": ("PRAGMA wal_checkpoint(TRUNCATE)",)}
"""What a server does by itself in time, or a growing file does bit by bit."""
