"""The reference model: what the books must say, from product.md alone, in integers and dicts.

It was written independently of the ledger's rules, and shares with the ledger only the values of its records
(meterapi/types.py): no rule and no sum. test_simulation compares both after every life. It is
plain on purpose, keeps everything, and looks through its lists each time. Money is nano-units.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from farebox.domain.keys import ObjectKey
from farebox.meterapi.types import (
    AccountRecord,
    Binding,
    CreditLeaseRequest,
    PriceVersion,
    Record,
    ReservationRecord,
    TopUpOrder,
)
from farebox.meterapi.usage import UsageEvent

Timed = TypeVar("Timed", Binding, PriceVersion)
LAST = datetime.max.replace(tzinfo=UTC)
SKEW = timedelta(minutes=5)


@dataclass
class Pot:
    """A free quota in tokens, or a gateway's credit lease in money: a total, its end, and the used part."""

    end: datetime
    total: int = 0
    used: int = 0


def in_force(facts: Sequence[Timed], time: datetime) -> Timed:
    """The fact in force at a time, the last recorded of equals; before the first fact, the first."""
    ordered = sorted(facts, key=lambda fact: fact.effective_at)
    return [fact for fact in ordered if fact.effective_at <= time or fact is ordered[0]][-1]


def is_change(facts: Sequence[Timed], fact: Timed, now: datetime) -> bool:
    """Whether the fact differs from the newest one and from the one in force at its time."""
    at = fact.effective_at
    known = [in_force(facts, time) for time in (max(now + SKEW, at), at) if facts]
    return all(replace(one, effective_at=at) != fact for one in known)


class Reference:
    """The ledger as it must be after the recorded facts. Each fact does what it makes possible."""

    def __init__(self) -> None:
        self.accounts: dict[ObjectKey, AccountRecord] = {}
        self.lines: dict[tuple[object, ...], tuple[ObjectKey, int]] = {}  # key -> (account, amount)
        self.bindings: dict[ObjectKey, list[Binding]] = defaultdict(list)
        self.versions: dict[str, list[PriceVersion]] = defaultdict(list)
        self.orders: dict[tuple[ObjectKey, str], TopUpOrder] = {}
        self.grants: dict[tuple[ObjectKey, str], Pot] = {}
        self.leases: dict[tuple[str, ObjectKey], Pot] = {}
        self.reservations: dict[tuple[ObjectKey, str], ReservationRecord] = {}
        self.terms: dict[tuple[ObjectKey, str], list[tuple[datetime, datetime]]] = defaultdict(list)
        self.minutes: dict[tuple[ObjectKey, datetime], list[int]] = defaultdict(lambda: [0, 0])
        self.events: dict[tuple[str, str], UsageEvent] = {}  # in the order of arrival

    def balance(self, account: ObjectKey) -> int:
        """The lines of an account."""
        return sum(amount for owner, amount in self.lines.values() if owner == account)

    def record(self, facts: Sequence[Record], now: datetime) -> list[int]:
        """Record facts; known ones change nothing. Returns the indexes of the refused ones."""
        refused, concerned = [], set[ObjectKey]()
        for place, fact in enumerate(facts):
            match fact:
                case AccountRecord(account, currency):
                    known = self.accounts.get(account, fact)
                    if known.currency != currency:
                        refused.append(place)
                    elif self.accounts.get(account) != fact:
                        self.accounts[account] = fact
                        concerned.add(account)
                case ReservationRecord(service, uid):
                    first = self.reservations.get((service, uid))
                    wanted = replace(first or fact, buying=fact.buying)
                    if wanted != first:
                        self.reservations[service, uid] = wanted
                        concerned.add(wanted.account)
                case Binding(service) if is_change(self.bindings[service], fact, now):
                    self.bindings[service].append(fact)
                case PriceVersion(model) if is_change(self.versions[model], fact, now):
                    self.versions[model].append(fact)
                    concerned |= {one.account for one in self.reservations.values() if one.model == model}
        self._grant()
        self._settle()
        self.advance(now, concerned)
        return refused

    def topup(self, order: TopUpOrder, now: datetime) -> str:
        """B10: once per account and reference; another amount or kind under the same one is refused."""
        if order.account not in self.accounts:
            return "AccountNotFound"
        first = self.orders.get((order.account, order.reference))
        if first is not None:
            same = (first.amount, first.kind) == (order.amount, order.kind)
            return "Repeated" if same else "ReferenceConflict"
        if order.amount == 0 or (order.kind == "Payment" and order.amount < 0):
            return "AmountOutOfRange"
        self.orders[order.account, order.reference] = order
        self.lines["topup", order.account, order.reference] = (order.account, order.amount)
        self.advance(now, {order.account})
        return "Posted"

    def usage(self, event: UsageEvent, now: datetime) -> str:
        """B12: once by (source, id); an event that cannot be charged yet is pending."""
        key = (event.source, event.id)
        if event.time > now + SKEW:
            return "Rejected"
        if key in self.events:
            return "Repeated"
        self.events[key] = event
        self._settle()
        return "Charged" if ("usage", *key) in self.lines else "Waiting"

    def claim(self, claim: CreditLeaseRequest, now: datetime) -> object:
        """B17: a gateway leases what it requests, as far as it is available, for an hour."""
        if claim.account not in self.accounts:
            return "AccountNotFound"
        lease = self.leases.setdefault((claim.source, claim.account), Pot(now))
        lease.end = now
        lease.total = lease.used + max(0, min(claim.amount, self._free(claim.account, now)))
        lease.end = now + timedelta(hours=1)
        return lease.total, lease.used, lease.end

    def _free(self, account: ObjectKey, now: datetime) -> int:
        """What is not leased to a gateway."""
        held = [pot for (_, owner), pot in self.leases.items() if owner == account and now < pot.end]
        left = sum(max(0, pot.total - pot.used) for pot in held)
        return self.balance(account) + self.accounts[account].credit_limit - left

    def _settle(self) -> None:
        """Charge every event whose service, account and model are known, in the order of arrival."""
        for key, event in self.events.items():
            bindings = [one for one in self.bindings[event.service] if event.model in (None, one.model)]
            if ("usage", *key) in self.lines or not bindings:
                continue
            binding = in_force(bindings, event.time)
            account, versions = self.accounts.get(binding.account), self.versions[binding.model]
            if account and versions and in_force(versions, event.time).currency == account.currency:
                charge = self._charge(event, binding)
                self.lines["usage", *key] = (binding.account, -charge)
                if (event.source, binding.account) in self.leases:
                    self.leases[event.source, binding.account].used += charge

    def _grant(self) -> None:
        """B6: once per account and model, when the account first has a service on a model that offers it."""
        every = [binding for of_service in self.bindings.values() for binding in of_service]
        for account, model in {(binding.account, binding.model) for binding in every}:
            versions = self.versions[model]
            if (account, model) in self.grants or account not in self.accounts or not versions:
                continue
            offer = in_force(versions, LAST)
            if offer.free_quota and offer.currency == self.accounts[account].currency:
                first = min(b.effective_at for b in every if (b.account, b.model) == (account, model))
                end = max(first, offer.effective_at) + timedelta(days=offer.free_quota.valid_days)
                self.grants[account, model] = Pot(end, offer.free_quota.tokens)

    def _charge(self, event: UsageEvent, binding: Binding) -> int:
        """The money of one event, after the reservations of its minute (B9) and the quota (B6)."""
        tiers = in_force(self.versions[binding.model], event.time).tiers
        bounds = [(tier.up_to_input_tokens, tier) for tier in tiers]
        price = next(tier for bound, tier in bounds if bound is None or event.input_tokens <= bound)
        written, cached = event.cache_write_input_tokens, event.cached_input_tokens
        to_pay = [written, event.input_tokens - written - cached, cached, event.output_tokens]
        reserved = [
            wanted
            for key, wanted in self.reservations.items()
            if (wanted.service, wanted.account, wanted.model)
            == (event.service, binding.account, binding.model)
            and any(start <= event.time < end for start, end in self.terms[key])
        ]
        minute = self.minutes[event.service, event.time.replace(second=0, microsecond=0)]
        left = [sum(one.input_tpm for one in reserved), sum(one.output_tpm for one in reserved)]
        for sort, side in enumerate((0, 0, 0, 1)):
            covered = min(to_pay[sort], max(left[side] - minute[side], 0))
            minute[side] += covered
            to_pay[sort] -= covered
        grant = self.grants.get((binding.account, binding.model))
        for sort, tokens in enumerate(to_pay):
            if grant and event.time < grant.end:
                free = min(tokens, grant.total - grant.used)
                grant.used += free
                to_pay[sort] -= free
        write_price = price.input if price.cache_write is None else price.cache_write
        prices = (write_price, price.input, price.cached_input, price.output)
        money = sum(tokens * each for tokens, each in zip(to_pay, prices, strict=True))
        return 0 if binding.trial else money

    def advance(self, now: datetime, accounts: set[ObjectKey] | None = None) -> None:
        """B9: buy the terms that are due and can be paid; of these accounts, or of all."""
        for key, wanted in self.reservations.items():
            terms, length, price = self.terms[key], timedelta(days=wanted.days), self._price(wanted, now)
            until = terms[-1][1] if terms else now
            buys = wanted.buying == "Renewing" or (wanted.buying == "Once" and not terms)
            is_due = buys and now >= until - min(timedelta(days=1), length / 2)
            if price is None or not is_due or (accounts is not None and wanted.account not in accounts):
                continue
            if self._free(wanted.account, now) >= price:
                start = max(now, until)
                terms.append((start, start + length))
                self.lines["term", *key, len(terms)] = (wanted.account, -price)

    def _price(self, wanted: ReservationRecord, now: datetime) -> int | None:
        """What a term costs now; None if it cannot be bought."""
        account, versions = self.accounts.get(wanted.account), self.versions[wanted.model]
        version = in_force(versions, now) if versions else None
        fits = version and account and version.currency == account.currency
        offer = version.reservation if version and fits else None
        if offer is None or wanted.days not in offer.terms:
            return None
        inputs, odd_input = divmod(wanted.input_tpm, offer.input_unit_tpm)
        outputs, odd_output = divmod(wanted.output_tpm, offer.output_unit_tpm)
        a_day = inputs * offer.input_unit_price_per_day + outputs * offer.output_unit_price_per_day
        return None if odd_input or odd_output else wanted.days * a_day

    def state(self, key: tuple[ObjectKey, str], now: datetime) -> str:
        """Of a reservation: Active, Expired, Unpaid, or Pending where nothing was bought nor tried."""
        terms, wanted = self.terms[key], self.reservations[key]
        if any(start <= now < end for start, end in terms):
            return "Active"
        if wanted.buying == "Nothing" or (wanted.buying == "Once" and terms):
            return "Expired" if terms else "Pending"
        return "Unpaid" if wanted.account in self.accounts else "Pending"
