"""Reservations: the price of a term, when the next term is bought, and the resulting state. Pure (B9).

A reservation is throughput bought in advance, one term after another. `decide_reservation` takes the terms
so far and the available money, and returns what to do now and when to decide again. Times are microseconds
since 1970 UTC.
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
"""The next term is bought this long before the current one ends (B9)."""


class Buying(StrEnum):
    """Which terms a reservation buys."""

    RENEWING = "Renewing"
    """The first term, and each next term before the current one ends (autoRenew)."""
    ONCE = "Once"
    """The first term only."""
    NOTHING = "Nothing"
    """No further term: the service is deleted, or may not spend the account's money now."""


@dataclass(frozen=True, slots=True)
class ReservationPlan:
    """What a service reserves: tokens per minute, for terms of `days` days."""

    input_tpm: int
    output_tpm: int
    days: int
    buying: Buying


@dataclass(frozen=True, slots=True)
class ReservationTerms:
    """What a model offers: units in tokens per minute, prices per unit and day in nano-units."""

    input_unit_tpm: int
    input_unit_price_per_day: Nano
    output_unit_tpm: int
    output_unit_price_per_day: Nano
    terms: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Term:
    """A term that was bought: `start` <= time < `end`. The first term has number 1."""

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
    """The state of a reservation.

    `reason` and `message` say why the next term is not bought, or are "". `current` is the number of the
    active term or, without one, of the last term (0: no term was ever bought). `due` is when to decide
    again at the latest; None: only when something else changes.
    """

    state: ReservationState
    current: int
    reason: str = ""
    message: str = ""
    due: int | None = None


def renewal_at(term: Term) -> int:
    """When the next term is bought: one day before the end, or at half of a shorter term."""
    return term.end - min(RENEWAL_LEAD, (term.end - term.start) // 2)


def term_price(plan: ReservationPlan, offer: ReservationTerms | None) -> Nano | str:
    """The price of a term in nano-units, or a message that says why the model does not offer it."""
    if offer is None:
        return "The model offers no reservations"
    if plan.days not in offer.terms:
        offered = ", ".join(map(str, sorted(offer.terms)))
        return f"The model offers no terms of {plan.days} days, only of {offered}"
    for name, tpm, unit in (
        ("inputTPM", plan.input_tpm, offer.input_unit_tpm),
        ("outputTPM", plan.output_tpm, offer.output_unit_tpm),
    ):
        if tpm % unit:
            return f"The model reserves multiples of {unit}, but {name} is {tpm}"
    price = plan.days * (
        plan.input_tpm // offer.input_unit_tpm * offer.input_unit_price_per_day
        + plan.output_tpm // offer.output_unit_tpm * offer.output_unit_price_per_day
    )
    if price > MAX_NANO:
        return "The price of the term does not fit into 64 bits of nano-units"
    return Nano(price)


def decide_reservation(
    plan: ReservationPlan,
    bought: Sequence[Term],
    offer: ReservationTerms | None,
    available: Nano | None,
    now: int,
) -> Purchase | ReservationOutcome:
    """The next step of a reservation.

    Args:
        bought: the terms so far, oldest first; the last two are enough.
        offer: the current offer of the model, or None.
        available: balance + credit limit of the account; None: the ledger does not know the account yet.
        now: the time.

    The caller carries out a Purchase and then decides again. A term that could not be bought in time begins
    when it is bought, so the account never pays for time without service.
    """
    last = bought[-1] if bought else None
    if last is not None and now < last.end:
        return _in_force(plan, bought, last, offer, available, now)
    number = last.number if last is not None else 0
    if plan.buying is Buying.NOTHING or (plan.buying is Buying.ONCE and last is not None):
        # No term is bought now. It waits for the owner, or for permission to spend.
        state = ReservationState.EXPIRED if last is not None else ReservationState.PENDING
        return ReservationOutcome(state, number)
    if available is None:
        return ReservationOutcome(
            ReservationState.PENDING, number, "AccountNotFound", "The ledger does not know the account yet"
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
    """The next step while a term is active; the following term may already be bought."""
    current = next((term for term in reversed(bought) if term.start <= now), last)
    if last.start > now:
        return ReservationOutcome(ReservationState.ACTIVE, current.number, due=last.start)
    renewal = renewal_at(last)
    if plan.buying is not Buying.RENEWING:
        return ReservationOutcome(ReservationState.ACTIVE, current.number, due=last.end)
    if now < renewal:
        return ReservationOutcome(ReservationState.ACTIVE, current.number, due=renewal)
    assert available is not None, "the ledger knows an account that bought a term"
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
        return "NotOffered", f"{price}. Create another service with a reservation that the model offers"
    if available < price:
        return (
            "InsufficientBalance",
            # Without the missing amount: it changes with every call, and each change would store a message.
            f"A term of {plan.days} days costs {format_amount(price)}, more than is available. "
            "Top up the account",
        )
    return Purchase(term, price)
