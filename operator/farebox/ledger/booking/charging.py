"""Charges calls: finds binding, account, coverage and price, and posts one transaction for each account and
model of a batch (docs/decisions/100).

It works on the ledger's state in memory. Only calls of a service with a reservation query the database, for
their minute. It updates balances and quotas at once; `post` posts the sums.
"""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import bindparam, select

from farebox.domain.billing.coverage import NOTHING, CallTokens, Coverage, by_price, cover
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
"""The kind of the transactions that charge usage."""
REVENUE: Final = "revenue:"
"""Prefix of the revenue accounts; the model follows."""
QUOTA: Final = "quota:"
"""Prefix of the ledger accounts of remaining free tokens; the model follows."""
USED: Final = "used:"
"""Prefix of the ledger accounts of used free tokens; the model follows."""


Outcome = tuple[int | None, int | None, int | None, int | None, str | None, str | None, int, int, int]
"""The values of `OUTCOME_COLUMNS`: the first four for a charged event, the next two for a pending one, and
the tokens that cost nothing.

It is a plain tuple because every event has one: a class would cost as much as the charge itself.
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
    """Whether the event is charged; otherwise it is pending."""
    return outcome[0] is not None


def _waits(reason: str, waiting_for: object) -> Outcome:
    """A pending outcome. `waiting_for` is the service, account or model whose record is missing."""
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
    """How to charge the calls of a service and a model that ended from `begins` to before `ends`.

    One lookup serves many calls: most calls of a batch belong to few services, in one minute.
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
    """What the reservations of a service cover in one minute so far. `stored`: whether it has a row."""

    input_tokens: int
    output_tokens: int
    stored: bool
    changed: bool = False


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
        tokens: CallTokens,
    ) -> Outcome:
        """Charge one call, or find out what it waits for.

        Args:
            key: the event's (source, id).
            model: the Model that the event names, if any.
            occurred_at: microseconds since 1970 UTC.
            tokens: of the call, already validated.
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
            nano = 0 if binding.trial else charge(route.price.tiers, tokens, coverage)
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
        """Find how to charge a call (docs/decisions/101), or what it waits for."""
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
        tokens: CallTokens,
    ) -> Coverage:
        """Compute the tokens of a call that cost nothing: first reservations, then the free quota (B6, B9).

        A recreated service can have several reservations in force. Each was paid, so they add up. A
        reservation of another model or account does not count.
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
        left = 0 if quota is None else quota.left(occurred_at)
        return cover(by_price(tokens), reserved_input, reserved_output, left)

    def _use(
        self,
        service: ObjectKey,
        quota: QuotaRow | None,
        group: _Group,
        occurred_at: int,
        coverage: Coverage,
    ) -> None:
        """Consume the reservation and the quota that cover a call."""
        if coverage.reservation_input or coverage.reservation_output:
            minute = self._minute(service, occurred_at // MICROS_PER_MINUTE)
            minute.input_tokens += coverage.reservation_input
            minute.output_tokens += coverage.reservation_output
            minute.changed = True
        if coverage.quota:
            assert quota is not None, "only a quota covers quota tokens"
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
        """Take a charge from the lease of the gateway that reported it (B17)."""
        lease = self._state.leases.get((source, account.id))
        if lease is not None:
            lease.spent += nano
            self._journal.set_lease(lease, new=False)
            self._journal.charged_leases.add((source, account.id))

    def post(self) -> None:
        """Post one transaction for each charged account and model."""
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
        changed = [(key, minute) for key, minute in self._minutes.items() if minute.changed]
        inserts = [
            (str(service), number, minute.input_tokens, minute.output_tokens)
            for (service, number), minute in changed
            if not minute.stored
        ]
        updates = [
            (minute.input_tokens, minute.output_tokens, str(service), number)
            for (service, number), minute in changed
            if minute.stored
        ]
        for statement, rows in ((_INSERT_MINUTE, inserts), (_UPDATE_MINUTE, updates)):
            if rows:
                self._journal.run_many(statement, rows)
        self._minutes.clear()


def quota_entries(model: str, tokens: int) -> dict[str, int]:
    """The entries for the use of free tokens, by ledger account."""
    return {QUOTA + model: -tokens, USED + model: tokens} if tokens else {}


def _idempotency_key(source: str, event_id: str) -> str:
    """The key of a transaction: the identity of its first event, which no other transaction charges.

    The length is part of it because source and id may contain any characters.
    """
    return f"usage:{len(source)}:{source}:{event_id}"


_minutes = tables.reserved_minutes.c
_READ_MINUTE = Prepared(
    select(_minutes.input_tokens, _minutes.output_tokens).where(
        _minutes.service == bindparam("of"), _minutes.minute == bindparam("number")
    ),
    ("of", "number"),
)
_INSERT_MINUTE = Prepared.insert(tables.reserved_minutes)
_UPDATE_MINUTE = Prepared.update(
    tables.reserved_minutes, ("input_tokens", "output_tokens"), ("service", "minute")
)
