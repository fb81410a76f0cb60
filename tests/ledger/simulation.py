"""A life of a ledger beside the reference model's: who tells it of each commit, and what must come of it.

`Observer` tells the reference just when a commit happens, and lets database calls fail; `compare` holds the
ledger against it. script.py draws what happens, test_simulation drives it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, select

from farebox.errors import LedgerRefused
from farebox.ledger import tables
from farebox.ledger.database import from_micros, to_micros
from farebox.ledger.engine import _Advance, _Claim, _Ingest, _Records, _TopUp
from farebox.ledger.feed import read_changes
from farebox.ledger.journal import Journal
from farebox.ledger.port import AccountTerms, Binding, Budget, Posted, PriceVersion, Record, Reservation
from farebox.ledger.usage import IngestResult, UsageEvent
from tests.ledger import reference
from tests.ledger.faults import after_commits, before_calls, injected
from tests.ledger.script import Work


class Books:
    """The reference model in the ledger's words. Answers as the ledger must."""

    def __init__(self) -> None:
        self.model = reference.Reference()
        self.now = 0
        """When it last happened, as the ledger has it."""
        self.disagreements: list[tuple[Work, Any, Any]] = []
        """Work to which the ledger answered otherwise: its answer, and the right one."""

    def perform(self, works: Sequence[Work], now: int) -> list[Any]:
        """Work that shared a commit: what is not usage goes first, as concurrent work has no order."""
        self.now = now
        answers: list[Any] = [None] * len(works)
        order = sorted(range(len(works)), key=lambda place: isinstance(works[place], _Ingest))
        for place in order:
            answers[place] = self._one(works[place], now)
        return answers

    def _one(self, work: Work, now: int) -> Any:
        match work:
            case _Records(records):
                return self.model.record([_fact(record) for record in records], now)
            case _TopUp(order):
                return self.model.topup(str(order.account), order.reference, order.kind, order.amount, now)
            case _Claim(order):
                return self.model.claim(order.source, str(order.account), order.amount, now)
            case _Ingest(events):
                fates = [self.model.usage(_event(item), now) for item in events]
                return tuple(map(fates.count, ("Charged", "Waiting", "Repeated", "Rejected")))
            case _Advance():
                return self.model.advance(now)


def answer(outcome: Any) -> Any:
    """What the ledger answered, as `Books` says it."""
    match outcome:
        case list():
            return [refusal.index for refusal in outcome]
        case Posted():
            return "Repeated" if outcome.duplicate else "Posted"
        case Budget():
            return outcome.granted, outcome.spent, to_micros(outcome.expires_at)
        case LedgerRefused():
            return outcome.reason
        case IngestResult(accepted, duplicate, pending, rejected):
            return accepted - pending, pending, duplicate, len(rejected)
    return outcome


def _event(item: UsageEvent) -> reference.Usage:
    return reference.Usage(
        item.source,
        item.id,
        str(item.service),
        item.model,
        to_micros(item.time),
        item.input_tokens,
        item.cached_input_tokens,
        item.output_tokens,
    )


def _fact(record: Record) -> reference.Fact:
    match record:
        case AccountTerms():
            return reference.Account(str(record.account), record.currency, record.credit_limit)
        case Binding():
            start = to_micros(record.effective_at)
            return reference.Binding(
                str(record.service), start, str(record.account), record.model, record.trial
            )
        case PriceVersion():
            offer, quota = record.reservation, record.free_quota
            return reference.Version(
                record.model,
                to_micros(record.effective_at),
                record.currency,
                tuple((t.up_to_input_tokens, t.input, t.cached_input, t.output) for t in record.tiers),
                quota and (quota.tokens, quota.valid_days),
                offer
                and (
                    offer.input_unit_tpm,
                    offer.input_unit_price_per_day,
                    offer.output_unit_tpm,
                    offer.output_unit_price_per_day,
                    offer.terms,
                ),
            )
        case Reservation():
            return reference.Reservation(
                str(record.service),
                record.uid,
                str(record.account),
                record.model,
                record.input_tpm,
                record.output_tpm,
                record.days,
                record.buying.value,
            )


class Observer:
    """Sees each commit of a writer as it happens, and lets database calls fail.

    The writer cannot know whether a commit whose answer it lost was done; this can, so the reference model
    is told of exactly what is in the books.
    """

    def __init__(self, engine: Engine, perform: Callable[[Journal, Sequence[Any]], Sequence[Any]]) -> None:
        """Watches the engine from now on; `perform` is the ledger's own."""
        self.books = Books()
        self.fail_call = 0
        """So many calls from now one fails, statement or commit; 0: none."""
        self.fail_commit = False
        """Whether the next commit fails once it is done."""
        self._perform = perform
        self._under_way: tuple[Sequence[Any], int, Sequence[Any]] | None = None
        before_calls(engine, self._call)
        after_commits(engine, lambda _: self._committed())

    def perform(self, journal: Journal, works: Sequence[Any]) -> Sequence[Any]:
        """What the writer calls in the place of the ledger's own."""
        self._under_way = None
        outcomes = self._perform(journal, works)
        self._under_way = (works, journal.recorded_at, outcomes)
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
        # The writer takes what is raised here for a failure of its database: so it is kept, and asked for.
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
    found = {str(item.account): (item.balance, item.credit_limit) for item in page.accounts}
    assert found == {name: (model.balance(name), item.credit) for name, item in model.accounts.items()}
    events = connection.execute(select(tables.usage_events).order_by(tables.usage_events.c.id)).all()
    assert [(row.source, row.event_id) for row in events] == list(model.events), "none is lost or kept twice"
    for row in events:
        _, amount = model.lines.get(("usage", row.source, row.event_id), (None, None))
        assert row.charge == (None if amount is None else -amount), row
    quotas = {
        (str(item.account), item.model): (item.total, item.used, to_micros(item.expires_at))
        for item in page.quotas
    }
    assert quotas == {key: (grant.tokens, grant.used, grant.end) for key, grant in model.grants.items()}
    budgets = {tuple(row[:2]): tuple(row[2:]) for row in connection.execute(_BUDGETS)}
    assert budgets == {key: (b.end, b.granted, b.spent) for key, b in model.budgets.items()}
    terms: dict[tuple[str, str], list[tuple[int, int]]] = {key: [] for key in model.reservations}
    for row in connection.execute(_TERMS):
        terms[row.service, row.uid].append((row.start_at, row.end_at))
    assert terms == {key: model.terms[key] for key in model.reservations}
    for item in page.reservations:
        key = (str(item.service), item.uid)
        assert item.state.value == model.state(key, books.now), item
        if item.state.value == "Active":
            assert item.period_start is not None
            assert item.period_end is not None
            assert item.period_start <= from_micros(books.now) < item.period_end
    assert len(page.reservations) == len(model.reservations)


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
