"""From a call to its charge: which binding, which account, what covers it, which price; and one transaction
for each account and model of a batch (docs/decisions/100).

All from the catalog in memory; only calls of a service with a reservation ask the database, for the minute
they fall in. It moves the balances and quotas of the catalog as it goes; `post` books the sums.
"""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import bindparam, select, update

from farebox.domain.billing.coverage import NOTHING, Coverage, Tokens, cover
from farebox.domain.billing.money import MAX_NANO
from farebox.domain.billing.pricing import charge
from farebox.domain.billing.reservations import MICROS_PER_MINUTE
from farebox.domain.keys import ObjectKey
from farebox.errors import InvalidAmount
from farebox.ledger.booking.journal import Journal
from farebox.ledger.booking.state import AccountRow, KnownBinding, KnownPrice, QuotaRow
from farebox.ledger.db import tables
from farebox.ledger.db.prepared import Prepared

USAGE: Final = "Usage"
"""The kind of the transactions made here."""
REVENUE: Final = "revenue:"
"""What the names of revenue books begin with; the model follows."""
QUOTA: Final = "quota:"
"""The book of the tokens that an account has left on a model."""
USED: Final = "used:"
"""The book of those that it used."""


Outcome = tuple[int | None, int | None, int | None, int | None, str | None, str | None, int, int, int]
"""The values of `OUTCOME_COLUMNS`: the first four for a charged event, the next two for a pending one, and
the tokens that cost nothing.

A plain tuple, because one is made for every event: a class of its own would cost as much as the charge.
"""
OUTCOME_COLUMNS: Final = (
    "transaction_sequence",
    "binding_id",
    "price_version_id",
    "charge",
    "pending_reason",
    "waiting_for",
    "reservation_input",
    "reservation_output",
    "quota_tokens",
)


def is_charged(outcome: Outcome) -> bool:
    """Whether the event has its place in a transaction; otherwise it waits."""
    return outcome[0] is not None


def _waits(reason: str, waiting_for: object) -> Outcome:
    """`waiting_for` is the service, account or model whose record helps."""
    return (None, None, None, None, reason, str(waiting_for), 0, 0, 0)


@dataclass(slots=True)
class _Group:
    account: AccountRow
    model: str
    sequence: int
    first: tuple[str, str]
    total: int = 0
    tokens: int = 0
    latest: int = -MAX_NANO


@dataclass(slots=True)
class _Route:
    """Where the calls of a service and a named model go that ended from `begins` to before `ends`.

    Found once for many calls: most of a batch are of few services, in one minute.
    """

    begins: int
    ends: int
    binding: KnownBinding
    account: AccountRow
    price: KnownPrice
    quota: QuotaRow | None
    reserved: bool
    group: _Group | None = None


@dataclass(slots=True)
class _Minute:
    """What a service's reservation covered in one minute so far. `stored`: whether it has its row."""

    input_tokens: int
    output_tokens: int
    stored: bool
    moved: bool = False


class Charging:
    """Charges the calls of one batch."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._state = journal.state
        self._groups: dict[tuple[int, str], _Group] = {}
        self._routes: dict[tuple[ObjectKey, str | None], _Route] = {}
        self._minutes: dict[tuple[ObjectKey, int], _Minute] = {}

    def charge(
        self,
        key: tuple[str, str],
        service: ObjectKey,
        model: str | None,
        occurred_at: int,
        tokens: tuple[int, int, int],
    ) -> Outcome:
        """Charge one call, or say what it waits for.

        Args:
            key: the event's (source, id).
            model: the Model that the event names, if it does.
            occurred_at: microseconds since 1970 UTC.
            tokens: input, cached input and output; the caller checked them.
        """
        route = self._routes.get((service, model))
        if route is None or not route.begins <= occurred_at < route.ends:
            found = self._find(service, model, occurred_at)
            if isinstance(found, tuple):
                return found
            route = self._routes[service, model] = found
        binding, account, quota = route.binding, route.account, route.quota
        coverage = NOTHING
        if route.reserved or (quota is not None and quota.used < quota.tokens):
            coverage = self._coverage(service, binding, quota, occurred_at, tokens)
        try:
            nano = 0 if binding.trial else charge(route.price.tiers, *tokens, coverage)
        except InvalidAmount:
            return _waits("AmountOutOfRange", account.key)
        group = route.group or self._groups.get((account.id, binding.model))
        if account.balance - nano < -MAX_NANO or (group is not None and group.total + nano > MAX_NANO):
            return _waits("AmountOutOfRange", account.key)
        if group is None:
            group = _Group(account, binding.model, self._journal.next_sequence(), key)
            self._groups[account.id, binding.model] = group
        route.group = group
        account.balance -= nano
        group.total += nano
        if occurred_at > group.latest:
            group.latest = occurred_at
        if self._state.leases:
            self._spend(key[0], account, nano)
        if coverage is NOTHING:
            return (group.sequence, binding.id, route.price.id, nano, None, None, 0, 0, 0)
        self._use(service, quota, group, occurred_at, coverage)
        return (group.sequence, binding.id, route.price.id, nano, None, None, *coverage)

    def _find(self, service: ObjectKey, model: str | None, occurred_at: int) -> _Route | Outcome:
        """Where a call goes (docs/decisions/101), or what it waits for."""
        state = self._state
        bindings = state.bindings.get(service)
        if bindings is None:
            return _waits("BindingNotFound", service)
        timeline = bindings.all if model is None else bindings.by_model.get(model)
        if timeline is None:
            return _waits("ModelNotBound", service)
        bound_at, bound_until, binding = timeline.span(occurred_at)
        account = state.accounts.get(binding.account)
        if account is None:
            return _waits("AccountNotFound", binding.account)
        versions = state.prices.get(binding.model)
        if versions is None:
            return _waits("PriceNotFound", binding.model)
        priced_at, priced_until, price = versions.span(occurred_at)
        if price.currency != account.currency:
            return _waits("CurrencyMismatch", binding.model)
        return _Route(
            begins=max(bound_at, priced_at),
            ends=min(bound_until, priced_until),
            binding=binding,
            account=account,
            price=price,
            quota=state.quotas.get((account.id, binding.model)),
            reserved=service in state.reservations_of,
        )

    def _coverage(
        self,
        service: ObjectKey,
        binding: KnownBinding,
        quota: QuotaRow | None,
        occurred_at: int,
        tokens: tuple[int, int, int],
    ) -> Coverage:
        """What costs nothing of a call: the reservations of its minute first, then the quota (B6, B9).

        A service that was made again may have several in force. Each was paid, so they add up; one that was
        bought on another model, or by another account, is not this call's.
        """
        reserved_input = reserved_output = 0
        for reservation in self._state.reservations_of.get(service, ()):
            is_its_own = (reservation.account, reservation.model) == (binding.account, binding.model)
            if is_its_own and reservation.term(occurred_at) is not None:
                reserved_input += reservation.plan.input_tpm
                reserved_output += reservation.plan.output_tpm
        if reserved_input or reserved_output:
            minute = self._minute(service, occurred_at // MICROS_PER_MINUTE)
            reserved_input = max(reserved_input - minute.input_tokens, 0)
            reserved_output = max(reserved_output - minute.output_tokens, 0)
        of_input, cached, output = tokens
        left = 0 if quota is None else quota.left(occurred_at)
        return cover(Tokens(of_input - cached, cached, output), reserved_input, reserved_output, left)

    def _use(
        self,
        service: ObjectKey,
        quota: QuotaRow | None,
        group: _Group,
        occurred_at: int,
        coverage: Coverage,
    ) -> None:
        """Take what covers a call from where it comes."""
        if coverage.reservation_input or coverage.reservation_output:
            minute = self._minute(service, occurred_at // MICROS_PER_MINUTE)
            minute.input_tokens += coverage.reservation_input
            minute.output_tokens += coverage.reservation_output
            minute.moved = True
        if coverage.quota:
            assert quota is not None, "only a quota covers its tokens"
            quota.used += coverage.quota
            group.tokens += coverage.quota
            self._journal.use_quota(quota, group.sequence)

    def _minute(self, service: ObjectKey, number: int) -> _Minute:
        minute = self._minutes.get((service, number))
        if minute is None:
            rows = _READ_MINUTE.rows(self._journal.connection, (str(service), number))
            of_input, of_output = rows[0] if rows else (0, 0)
            minute = _Minute(of_input, of_output, stored=bool(rows))
            self._minutes[service, number] = minute
        return minute

    def _spend(self, source: str, account: AccountRow, nano: int) -> None:
        """Take a charge from the lease of the gateway that it came from (B17)."""
        lease = self._state.leases.get((source, account.id))
        if lease is not None:
            lease.spent += nano
            self._journal.set_lease(lease, new=False)
            self._journal.charged_leases.add((source, account.id))

    def post(self) -> None:
        """Book a transaction for each account and model that was charged."""
        for group in self._groups.values():
            self._journal.post(
                group.sequence,
                group.account,
                kind=USAGE,
                idempotency_key=_idempotency_key(*group.first),
                occurred_at=group.latest,
                amount=-group.total,
                against=REVENUE + group.model,
                tokens=quota_entries(group.model, group.tokens),
            )
        self._groups.clear()
        self._routes.clear()
        self._write_minutes()

    def _write_minutes(self) -> None:
        moved = [(key, minute) for key, minute in self._minutes.items() if minute.moved]
        keys_first = [
            (str(service), number, minute.input_tokens, minute.output_tokens)
            for (service, number), minute in moved
            if not minute.stored
        ]
        keys_last = [
            (minute.input_tokens, minute.output_tokens, str(service), number)
            for (service, number), minute in moved
            if minute.stored
        ]
        for statement, rows in ((_ADD_MINUTE, keys_first), (_MOVE_MINUTE, keys_last)):
            if rows:
                self._journal.run_many(statement, rows)
        self._minutes.clear()


def quota_entries(model: str, tokens: int) -> dict[str, int]:
    """The entries by book of so many tokens of a quota used."""
    return {QUOTA + model: -tokens, USED + model: tokens} if tokens else {}


def _idempotency_key(source: str, event_id: str) -> str:
    """An event is charged in one transaction, so the first event's name can be the transaction's.

    With the length, because both may have any characters in them.
    """
    return f"usage:{len(source)}:{source}:{event_id}"


_minutes = tables.reserved_minutes.c
_READ_MINUTE = Prepared(
    select(_minutes.input_tokens, _minutes.output_tokens).where(
        _minutes.service == bindparam("of"), _minutes.minute == bindparam("number")
    ),
    ("of", "number"),
)
_ADD_MINUTE = Prepared.insert(tables.reserved_minutes)
_MOVE_MINUTE = Prepared(
    update(tables.reserved_minutes)
    .values(input_tokens=bindparam("new_input"), output_tokens=bindparam("new_output"))
    .where(_minutes.service == bindparam("of"), _minutes.minute == bindparam("number")),
    ("new_input", "new_output", "of", "number"),
)
