"""Reservations: what a term costs, when the next one is bought, and what state that leaves. Pure (B9).

A reservation is throughput bought in advance, term after term. `judge` looks at what was bought so far and at
the money there is, and says what to do now and when to look again. Times are microseconds since 1970 UTC.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from farebox.api import ReservationState
from farebox.domain.billing.money import MAX_NANO, Nano, format_amount

MICROS_PER_MINUTE: Final = 60_000_000
MICROS_PER_DAY: Final = 24 * 60 * MICROS_PER_MINUTE
RENEWAL_LEAD: Final = MICROS_PER_DAY
"""So long before a term ends the next one is bought (B9)."""


class Buying(StrEnum):
    """Which terms are bought."""

    RENEWING = "Renewing"
    """The first, and the next one before one ends: autoRenew."""
    ONCE = "Once"
    """The first one alone."""
    NOTHING = "Nothing"
    """None any more: the service is gone, or may not spend the account's money now."""


@dataclass(frozen=True, slots=True)
class ReservationPlan:
    """What the owner of a service reserves: tokens a minute, for terms of so many days."""

    input_tpm: int
    output_tpm: int
    days: int
    buying: Buying


@dataclass(frozen=True, slots=True)
class ReservationTerms:
    """What a model offers for reservation: units of tokens a minute; prices a day in nano-units."""

    input_unit_tpm: int
    input_unit_price_per_day: Nano
    output_unit_tpm: int
    output_unit_price_per_day: Nano
    terms: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Term:
    """A term that was bought, from `start` to before `end`; the first has number 1."""

    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Purchase:
    """A term to buy now."""

    term: Term
    price: Nano


@dataclass(frozen=True, slots=True)
class ReservationOutcome:
    """Where a reservation is.

    `reason` and `message` say why the next term is not bought, or are "". `current` is the number of the
    term in force or, without one, of the last (0: none was ever bought). `due` is when to look again at the
    latest; None: only when something else changes.
    """

    state: ReservationState
    current: int
    reason: str = ""
    message: str = ""
    due: int | None = None


def renewal_at(term: Term) -> int:
    """When the term after this one is bought: a day ahead, or half of a shorter term."""
    return term.end - min(RENEWAL_LEAD, (term.end - term.start) // 2)


def term_price(plan: ReservationPlan, offer: ReservationTerms | None) -> Nano | str:
    """What a term costs, or a sentence that says why it cannot be bought."""
    if offer is None:
        return "the model offers no reservations"
    if plan.days not in offer.terms:
        offered = ", ".join(map(str, sorted(offer.terms)))
        return f"the model offers no terms of {plan.days} days, but of {offered}"
    for name, tpm, unit in (
        ("inputTPM", plan.input_tpm, offer.input_unit_tpm),
        ("outputTPM", plan.output_tpm, offer.output_unit_tpm),
    ):
        if tpm % unit:
            return f"{name} is {tpm}, but the model reserves multiples of {unit}"
    price = plan.days * (
        plan.input_tpm // offer.input_unit_tpm * offer.input_unit_price_per_day
        + plan.output_tpm // offer.output_unit_tpm * offer.output_unit_price_per_day
    )
    if price > MAX_NANO:
        return "the term costs more than 64 bits of nano-units hold"
    return Nano(price)


def decide_reservation(
    plan: ReservationPlan,
    bought: Sequence[Term],
    offer: ReservationTerms | None,
    available: Nano | None,
    now: int,
) -> Purchase | ReservationOutcome:
    """What to do about a reservation now.

    Args:
        bought: the terms so far, oldest first; the last two are enough.
        offer: of the model as it is now, or None.
        available: what the account can spend, balance and credit limit; None: the account is not known yet.
        now: the time.

    A Purchase is to be carried out, and judged again with it. Renewal comes a day ahead; a term that could
    not be bought in time is bought from the moment when it can be, so no time is paid that was not served.
    """
    last = bought[-1] if bought else None
    if last is not None and now < last.end:
        return _in_force(plan, bought, last, offer, available, now)
    number = last.number if last is not None else 0
    if plan.buying is Buying.NOTHING or (plan.buying is Buying.ONCE and last is not None):
        # Nothing was bought and nothing will be: it waits for its owner, or for leave to spend.
        state = ReservationState.EXPIRED if last is not None else ReservationState.PENDING
        return ReservationOutcome(state, number)
    if available is None:
        return ReservationOutcome(
            ReservationState.PENDING, number, "AccountNotFound", "its account is not known yet"
        )
    attempt = _attempt(plan, Term(number + 1, now, now + plan.days * MICROS_PER_DAY), offer, available)
    if isinstance(attempt, Purchase):
        return attempt
    reason, message = attempt
    return ReservationOutcome(ReservationState.UNPAID, number, reason, message)


def _in_force(
    plan: ReservationPlan,
    bought: Sequence[Term],
    last: Term,
    offer: ReservationTerms | None,
    available: Nano | None,
    now: int,
) -> Purchase | ReservationOutcome:
    """A term is in force, and perhaps the next one is bought already."""
    current = next((term for term in reversed(bought) if term.start <= now), last)
    if last.start > now:
        return ReservationOutcome(ReservationState.ACTIVE, current.number, due=last.start)
    renewal = renewal_at(last)
    if plan.buying is not Buying.RENEWING:
        return ReservationOutcome(ReservationState.ACTIVE, current.number, due=last.end)
    if now < renewal:
        return ReservationOutcome(ReservationState.ACTIVE, current.number, due=renewal)
    assert available is not None, "an account that a term was bought from is known"
    next_term = Term(last.number + 1, last.end, last.end + plan.days * MICROS_PER_DAY)
    attempt = _attempt(plan, next_term, offer, available)
    if isinstance(attempt, Purchase):
        return attempt
    reason, message = attempt
    return ReservationOutcome(ReservationState.ACTIVE, current.number, reason, message, due=last.end)


def _attempt(
    plan: ReservationPlan, term: Term, offer: ReservationTerms | None, available: Nano
) -> Purchase | tuple[str, str]:
    price = term_price(plan, offer)
    if isinstance(price, str):
        return "NotOffered", f"{price}: create another service with what it offers"
    if available < price:
        return (
            "InsufficientBalance",
            # Not what is missing: it moves with every call, and the message is stored with each change.
            f"a term of {plan.days} days costs {format_amount(price)}, more than is available: top it up",
        )
    return Purchase(term, price)
