"""The reference model: what the books must say, from product.md alone, in integers and dicts.

It was written before the ledger's rules were read, and shares no code with farebox; test_simulation compares
the two after every life. It is plain on purpose, keeps everything, and looks through its lists each time. No
files, clock or randomness: every operation is told the time. Times are integers (microseconds, UTC), money is
nano-units, prices are nano-units a token.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

MINUTE = 60_000_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR


@dataclass(frozen=True)
class Usage:
    """A call. `model`: what served it, if the sender knows. The cached tokens are among the input's."""

    source: str
    id: str
    service: str
    model: str | None
    end: int
    input: int
    cached: int
    output: int


@dataclass(frozen=True)
class Account:
    """Who pays."""

    name: str
    currency: str
    credit: int


@dataclass(frozen=True)
class Binding:
    """Who pays for a service, and what serves it, from a time on."""

    service: str
    start: int
    account: str
    model: str
    trial: bool


@dataclass(frozen=True)
class Version:
    """What a model costs and offers from a time on.

    Tiers are (up to input tokens or None, input, cached, output); the quota (tokens, valid days); the offer
    of reservations (tokens of an input unit, its price a day, the same of output, terms in days).
    """

    model: str
    start: int
    currency: str
    tiers: tuple[tuple[int | None, int, int, int], ...]
    quota: tuple[int, int] | None
    offer: tuple[int, int, int, int, tuple[int, ...]] | None


@dataclass(frozen=True)
class Reservation:
    """Tokens a minute that a service wants for terms of so many days. Buying: Renewing, Once or Nothing."""

    service: str
    uid: str
    account: str
    model: str
    input: int
    output: int
    days: int
    buying: str


@dataclass
class Grant:
    """A free quota."""

    end: int
    tokens: int
    used: int = 0


@dataclass
class Budget:
    """What a gateway may spend of an account, and has spent, since its first claim."""

    end: int = 0
    granted: int = 0
    spent: int = 0


Fact = Account | Binding | Version | Reservation
Timed = TypeVar("Timed", Binding, Version)


def in_order(entries: Iterable[Timed]) -> list[Timed]:
    """By their time; of equal times the later told is the later."""
    return sorted(entries, key=lambda entry: entry.start)


def in_force(entries: Iterable[Timed], time: int) -> Timed:
    """The last of those that had begun at the time; before the first one, the first holds."""
    ordered = in_order(entries)
    return [entry for entry in ordered if entry.start <= time or entry is ordered[0]][-1]


def same(one: Timed, other: Timed) -> bool:
    """Whether both say the same, whenever they began."""
    return replace(one, start=other.start) == other


class Reference:
    """The books as they must be after what they were told."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.lines: dict[tuple[object, ...], tuple[str, int]] = {}  # what is booked: key -> (account, amount)
        self.bindings: dict[str, list[Binding]] = defaultdict(list)
        self.versions: dict[str, list[Version]] = defaultdict(list)
        self.kinds: dict[tuple[object, ...], str] = {}  # of the top-ups
        self.grants: dict[tuple[str, str], Grant] = {}
        self.budgets: dict[tuple[str, str], Budget] = {}  # by source and account
        self.reservations: dict[tuple[str, str], Reservation] = {}
        self.terms: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
        self.minutes: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
        self.events: dict[tuple[str, str], Usage] = {}  # in the order of arrival

    def balance(self, account: str) -> int:
        """What is booked on an account."""
        return sum(amount for owner, amount in self.lines.values() if owner == account)

    def pending(self) -> list[tuple[str, str]]:
        """The events that are not charged, in the order of arrival."""
        return [key for key in self.events if ("usage", *key) not in self.lines]

    # What the ledger is told. Each piece of news is followed by what it makes possible.

    def record(self, facts: Sequence[Fact], now: int) -> list[int]:
        """Take facts, those already known change nothing; returns the places of those that are refused."""
        news: set[str] = set()
        refused = []
        for place, fact in enumerate(facts):
            try:
                news |= self._take(fact)
            except ValueError:
                refused.append(place)
        self._grant()
        self._settle()
        self.advance(now, news)
        return refused

    def _take(self, fact: Fact) -> set[str]:
        """The accounts whose reservations are to be looked at again."""
        if isinstance(fact, Account):
            known = self.accounts.get(fact.name, fact)
            if known.currency != fact.currency:
                raise ValueError("an account keeps its currency")
            is_news = self.accounts.get(fact.name) != fact
            self.accounts[fact.name] = fact
            return {fact.name} if is_news else set()
        if isinstance(fact, Reservation):
            key = (fact.service, fact.uid)
            first = self.reservations.get(key)
            self.reservations[key] = fact if first is None else replace(first, buying=fact.buying)
            return set() if self.reservations[key] == first else {self.reservations[key].account}
        if isinstance(fact, Binding):
            self._add(self.bindings[fact.service], fact)
            return set()
        if not self._add(self.versions[fact.model], fact):
            return set()
        return {wanted.account for wanted in self.reservations.values() if wanted.model == fact.model}

    def _add(self, entries: list[Timed], fact: Timed) -> bool:
        """Add what is news: neither the newest nor the one in force at its time says the same."""
        if entries and (same(in_order(entries)[-1], fact) or same(in_force(entries, fact.start), fact)):
            return False
        entries.append(fact)
        return True

    def topup(self, account: str, reference: str, kind: str, amount: int, now: int) -> str:
        """B10: once per account and reference; another amount or kind under the same one is refused."""
        if account not in self.accounts:
            return "AccountNotFound"
        key = ("topup", account, reference)
        if key in self.lines:
            same_again = (self.lines[key][1], self.kinds[key]) == (amount, kind)
            return "Repeated" if same_again else "ReferenceConflict"
        if amount == 0 or (kind == "Payment" and amount < 0):
            return "AmountOutOfRange"
        self.lines[key], self.kinds[key] = (account, amount), kind
        self.advance(now, {account})
        return "Posted"

    def usage(self, event: Usage, now: int) -> str:
        """B12: once by (source, id); what cannot be charged yet waits."""
        if event.end > now + 5 * MINUTE:
            return "Rejected"
        key = (event.source, event.id)
        if key in self.events:
            return "Repeated"
        self.events[key] = event
        self._settle()
        return "Charged" if ("usage", *key) in self.lines else "Waiting"

    def claim(self, source: str, account: str, amount: int, now: int) -> object:
        """B17: a gateway may spend what it claims, as far as no other has it; for an hour."""
        if account not in self.accounts:
            return "AccountNotFound"
        budget = self.budgets.setdefault((source, account), Budget())
        budget.end = now
        budget.granted = budget.spent + max(0, min(amount, self._free(account, now)))
        budget.end = now + HOUR
        return budget.granted, budget.spent, budget.end

    def _free(self, account: str, now: int) -> int:
        """What no gateway may spend yet."""
        held = [b for (_, owner), b in self.budgets.items() if owner == account and now < b.end]
        left = sum(max(0, budget.granted - budget.spent) for budget in held)
        return self.balance(account) + self.accounts[account].credit - left

    # What follows from it

    def _settle(self) -> None:
        """Charge every event whose service, account and model are known, in the order of arrival."""
        for key in self.pending():
            event = self.events[key]
            bindings = [
                binding
                for binding in self.bindings.get(event.service, [])
                if event.model in (None, binding.model)
            ]
            if not bindings:
                continue
            binding = in_force(bindings, event.end)
            account, versions = self.accounts.get(binding.account), self.versions.get(binding.model)
            if account and versions and in_force(versions, event.end).currency == account.currency:
                charge = self._charge(event, binding)
                self.lines["usage", *key] = (binding.account, -charge)
                if (event.source, binding.account) in self.budgets:
                    self.budgets[event.source, binding.account].spent += charge

    def _grant(self) -> None:
        """B6: once per account and model, when the account first has a service on a model that offers it."""
        every = [binding for bindings in self.bindings.values() for binding in bindings]
        for account, model in sorted({(binding.account, binding.model) for binding in every}):
            versions = self.versions.get(model)
            if (account, model) in self.grants or account not in self.accounts or not versions:
                continue
            offer = in_order(versions)[-1]
            if offer.quota and offer.currency == self.accounts[account].currency:
                first = min(b.start for b in every if (b.account, b.model) == (account, model))
                end = max(first, offer.start) + offer.quota[1] * DAY
                self.grants[account, model] = Grant(end, offer.quota[0])

    def _charge(self, event: Usage, binding: Binding) -> int:
        """The money of one event, after the reservations of its minute (B9) and the quota (B6)."""
        tiers = in_force(self.versions[binding.model], event.end).tiers
        prices = next(tier[1:] for tier in tiers if tier[0] is None or event.input <= tier[0])
        uncached, cached, output = event.input - event.cached, event.cached, event.output
        reserved = [
            (wanted.input, wanted.output)
            for key, wanted in self.reservations.items()
            if (wanted.service, wanted.account, wanted.model)
            == (event.service, binding.account, binding.model)
            and any(start <= event.end < end for start, end in self.terms[key])
        ]
        minute = self.minutes[event.service, event.end // MINUTE]
        left = max(sum(pair[0] for pair in reserved) - minute[0], 0)
        by_uncached = min(uncached, left)
        by_cached = min(cached, left - by_uncached)
        by_output = min(output, max(sum(pair[1] for pair in reserved) - minute[1], 0))
        minute[0] += by_uncached + by_cached
        minute[1] += by_output
        to_pay = [uncached - by_uncached, cached - by_cached, output - by_output]
        grant = self.grants.get((binding.account, binding.model))
        if grant and event.end < grant.end:
            for sort, tokens in enumerate(to_pay):
                free = min(tokens, grant.tokens - grant.used)
                grant.used += free
                to_pay[sort] -= free
        return 0 if binding.trial else sum(count * price for count, price in zip(to_pay, prices, strict=True))

    def advance(self, now: int, accounts: set[str] | None = None) -> None:
        """B9: buy the terms that are due and can be paid; of these accounts, or of all."""
        for key, wanted in self.reservations.items():
            if accounts is not None and wanted.account not in accounts:
                continue
            until = max((end for _, end in self.terms[key]), default=now)
            ahead = DAY if wanted.days >= 2 else wanted.days * DAY // 2
            buys = wanted.buying == "Renewing" or (wanted.buying == "Once" and not self.terms[key])
            price = self._price(wanted)
            if not buys or now < until - ahead or price is None:
                continue
            if self._free(wanted.account, now) >= price:
                start = max(now, until)
                self.terms[key].append((start, start + wanted.days * DAY))
                self.lines["term", *key, len(self.terms[key])] = (wanted.account, -price)

    def _price(self, wanted: Reservation) -> int | None:
        """What a term costs now; None if it cannot be bought."""
        account, versions = self.accounts.get(wanted.account), self.versions.get(wanted.model)
        if account is None or not versions:
            return None
        newest = in_order(versions)[-1]
        if newest.currency != account.currency or newest.offer is None:
            return None
        input_unit, input_price, output_unit, output_price, terms = newest.offer
        if wanted.days not in terms or wanted.input % input_unit or wanted.output % output_unit:
            return None
        a_day = wanted.input // input_unit * input_price + wanted.output // output_unit * output_price
        return wanted.days * a_day

    def state(self, key: tuple[str, str], now: int) -> str:
        """Of a reservation: Active, Expired, Unpaid, or Pending where nothing was bought nor tried."""
        terms, wanted = self.terms[key], self.reservations[key]
        if any(start <= now < end for start, end in terms):
            return "Active"
        if wanted.buying == "Nothing" or (wanted.buying == "Once" and terms):
            return "Expired" if terms else "Pending"
        return "Unpaid" if wanted.account in self.accounts else "Pending"
