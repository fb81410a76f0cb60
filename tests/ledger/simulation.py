"""Runs a ledger and the reference model side by side: the model gets each commit, and both must agree.

`Observer` reports each commit to the model at the moment it happens, and makes database calls fail. `compare`
checks the ledger against the model. script.py draws the steps, and test_simulation.py runs them.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, select

from farebox.clock import from_micros
from farebox.domain.keys import ObjectKey
from farebox.errors import LedgerRefused
from farebox.ledger.booking.journal import Journal
from farebox.ledger.db import tables
from farebox.ledger.engine import _CreditLease, _Ingest, _Records, _Renewals, _TopUp
from farebox.ledger.feed import read_changes
from farebox.ledger.reports.statement import read_statement
from farebox.ledger.reports.usage import read_usage
from farebox.meterapi.reports import Group, StatementLine, UsageQuery, UsageRow
from farebox.meterapi.types import CreditLease, TopUpReceipt
from farebox.meterapi.usage import IngestResult
from tests.ledger import reference
from tests.ledger.faults import after_commits, before_calls, injected
from tests.ledger.script import Work
from tests.ledger.support import START


class Books:
    """The reference model in the ledger's words. Answers as the ledger must."""

    def __init__(self) -> None:
        self.model = reference.Reference()
        self.now = START
        """When it last happened, as the ledger has it."""
        self.disagreements: list[tuple[Work, Any, Any]] = []
        """Work to which the ledger answered otherwise: its answer, and the right one."""

    def perform(self, works: Sequence[Work], now: datetime) -> list[Any]:
        """Work that shared a commit: what is not usage goes first, as concurrent work has no order."""
        self.now = now
        answers: list[Any] = [None] * len(works)
        order = sorted(range(len(works)), key=lambda place: isinstance(works[place], _Ingest))
        for place in order:
            answers[place] = self._one(works[place], now)
        return answers

    def _one(self, work: Work, now: datetime) -> Any:
        match work:
            case _Records(records):
                return self.model.record(records, now)
            case _TopUp(order):
                return self.model.topup(order, now)
            case _CreditLease(order):
                return self.model.claim(order, now)
            case _Ingest(events):
                fates = [self.model.usage(item, now) for item in events]
                return tuple(map(fates.count, ("Charged", "Waiting", "Repeated", "Rejected")))
            case _Renewals():
                return self.model.advance(now)


def answer(outcome: Any) -> Any:
    """What the ledger answered, as `Books` says it."""
    match outcome:
        case list():
            return [refusal.index for refusal in outcome]
        case TopUpReceipt():
            return "Repeated" if outcome.duplicate else "Posted"
        case CreditLease():
            return outcome.granted, outcome.spent, outcome.expires_at
        case LedgerRefused():
            return outcome.reason
        case IngestResult(accepted, duplicate, pending, rejected):
            return accepted - pending, pending, duplicate, len(rejected)
    return outcome


class Observer:
    """Sees each commit of a writer as it happens, and lets database calls fail.

    The writer cannot know whether a commit whose answer it lost was done; this can, so the reference model
    receives exactly what is in the ledger.
    """

    def __init__(self, engine: Engine, perform: Callable[[Journal, Sequence[Any]], Sequence[Any]]) -> None:
        """Watches the engine from now on; `perform` is the ledger's own."""
        self.books = Books()
        self.fail_call = 0
        """Which of the next database calls (statements and commits) fails, counted from 1; 0: none."""
        self.fail_commit = False
        """Whether the next commit fails once it is done."""
        self._perform = perform
        self._under_way: tuple[Sequence[Any], datetime, Sequence[Any]] | None = None
        before_calls(engine, self._call)
        after_commits(engine, lambda _: self._committed())

    def perform(self, journal: Journal, works: Sequence[Any]) -> Sequence[Any]:
        """What the writer calls in the place of the ledger's own."""
        self._under_way = None
        outcomes = self._perform(journal, works)
        self._under_way = (works, journal.now, outcomes)
        return outcomes

    def _call(self) -> None:
        self.fail_call -= 1
        if self.fail_call == 0:
            raise injected()

    def _committed(self) -> None:
        under_way, self._under_way = self._under_way, None
        if under_way is None:
            return
        works, now, outcomes = under_way
        found, expected = [answer(outcome) for outcome in outcomes], self.books.perform(works, now)
        # The writer treats an exception here as a failure of its database, so it is kept for later.
        self.books.disagreements += [
            (work, *pair) for work, *pair in zip(works, found, expected, strict=True) if pair[0] != pair[1]
        ]
        if self.fail_commit:
            self.fail_commit = False
            raise injected()


def compare(connection: Connection, books: Books) -> None:
    """Fail where the ledger and the reference differ. The last that it did was `advance`."""
    assert not books.disagreements, books.disagreements
    model = books.model
    page = read_changes(connection, 0, 10_000)
    found = {item.account: (item.balance, item.credit_limit) for item in page.accounts}
    assert found == {name: (model.balance(name), item.credit_limit) for name, item in model.accounts.items()}
    events = connection.execute(select(tables.usage_events).order_by(tables.usage_events.c.id)).all()
    assert [(row.source, row.event_id) for row in events] == list(model.events), "none is lost or kept twice"
    for row in events:
        _, amount = model.lines.get(("usage", row.source, row.event_id), (None, None))
        assert row.charge == (None if amount is None else -amount), row
    quotas = {(item.account, item.model): (item.total, item.used, item.expires_at) for item in page.quotas}
    assert quotas == {key: (grant.total, grant.used, grant.end) for key, grant in model.grants.items()}
    budgets = {
        (row.source, ObjectKey.parse(row.key)): (from_micros(row.expires_at), row.granted, row.spent)
        for row in connection.execute(_BUDGETS)
    }
    assert budgets == {key: (b.end, b.total, b.used) for key, b in model.leases.items()}
    terms: dict[tuple[ObjectKey, str], list[tuple[datetime, datetime]]] = defaultdict(list)
    for row in connection.execute(_TERMS):
        key = (ObjectKey.parse(row.service), row.uid)
        terms[key].append((from_micros(row.start_at), from_micros(row.end_at)))
    assert terms == {key: bought for key, bought in model.terms.items() if bought}
    compare_reports(connection, model)
    for item in page.reservations:
        key = (item.service, item.uid)
        assert item.state.value == model.state(key, books.now), item
        if item.state.value == "Active":
            assert item.period_start is not None
            assert item.period_end is not None
            assert item.period_start <= books.now < item.period_end
    assert len(page.reservations) == len(model.reservations)


def compare_reports(connection: Connection, model: reference.Reference) -> None:
    """Fail where a statement or usage, however grouped, is not the sum of the reference's lines (B19)."""
    first, last = START - timedelta(days=3_000), START + timedelta(days=50_000)
    for account in model.accounts:
        statement = read_statement(connection, account, first, last)
        assert statement is not None
        assert (statement.opening_balance, statement.closing_balance) == (0, model.balance(account))
        booked: dict[str, list[int]] = defaultdict(list)
        for key, (owner, amount) in model.lines.items():
            booked[str(key[0])] += [amount] * (owner == account)
        for sort, kinds in (("usage", "Usage"), ("term", "ReservationTerm"), ("topup", "Payment Adjustment")):
            lines = [line.amount for line in statement.lines if line.kind in kinds.split()]
            assert sum(lines) == sum(booked[sort])
        assert _estimated_by_statement(statement.lines) == _estimated(account, model)
        for groups in ((), (Group.SERVICE,), (Group.MODEL, Group.API_KEY)):
            query = UsageQuery(account, first, last, frozenset(groups))
            rows = read_usage(connection, query, 1_000).rows
            assert sum(row.calls for row in rows) == len(booked["usage"])
            assert -sum(row.charge for row in rows) == sum(booked["usage"])
            assert _estimated_by_usage(rows) == _estimated(account, model)


def _estimated(account: ObjectKey, model: reference.Reference) -> tuple[int, int, int]:
    """Calls, tokens and charge of the account's estimated calls, from the reference (B26)."""
    calls = [
        (event.input_tokens + event.output_tokens, -model.lines["usage", *key][1])
        for key, event in model.events.items()
        if event.estimated and model.lines.get(("usage", *key), (None, 0))[0] == account
    ]
    return len(calls), sum(tokens for tokens, _ in calls), sum(charge for _, charge in calls)


def _estimated_by_usage(rows: Sequence[UsageRow]) -> tuple[int, int, int]:
    return (
        sum(row.estimated_calls for row in rows),
        sum(row.estimated_tokens for row in rows),
        sum(row.estimated_charge for row in rows),
    )


def _estimated_by_statement(lines: Sequence[StatementLine]) -> tuple[int, int, int]:
    return (
        sum(line.estimated_calls or 0 for line in lines),
        sum(line.estimated_tokens or 0 for line in lines),
        -sum(line.estimated_amount or 0 for line in lines),
    )


_budgets = tables.budgets.c
_BUDGETS = select(
    _budgets.source, tables.accounts.c.key, _budgets.expires_at, _budgets.granted, _budgets.spent
).join_from(tables.budgets, tables.accounts)
_reservations, _terms = tables.reservations.c, tables.reservation_terms.c
_TERMS = (
    select(_reservations.service, _reservations.uid, _terms.start_at, _terms.end_at)
    .join_from(tables.reservation_terms, tables.reservations)
    .order_by(_terms.reservation_id, _terms.number)
)
