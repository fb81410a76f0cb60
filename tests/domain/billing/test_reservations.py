"""When a term is bought, and the resulting state: every state x time x money x buying (B9)."""

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.api import ReservationState
from farebox.domain.billing.money import MAX_NANO, Nano
from farebox.domain.billing.reservations import (
    MICROS_PER_DAY,
    Buying,
    Purchase,
    ReservationOutcome,
    ReservationPlan,
    ReservationTerms,
    Term,
    decide_reservation,
    renewal_at,
    term_price,
)
from tests.domain.strategies import THOROUGH

DAY = MICROS_PER_DAY
OFFER = ReservationTerms(1_000, Nano(5), 100, Nano(7), (1, 2, 30))
PRICE = 30 * (2 * 5 + 3 * 7)
FIRST = Term(1, 0, 30 * DAY)
ACTIVE, UNPAID = ReservationState.ACTIVE, ReservationState.UNPAID
RICH, POOR = Nano(PRICE), Nano(PRICE - 1)


def plan(buying: Buying, days: int = 30) -> ReservationPlan:
    """2,000 input and 300 output tokens per minute."""
    return ReservationPlan(2_000, 300, days, buying)


def expected(buying: Buying, bought: tuple[Term, ...], money: Nano | None, now: int) -> str | int:
    """The expected state, or the start of the term to buy, by the rule of product.md."""
    if not bought:
        if buying is Buying.NOTHING or money is None:
            return "Pending"
        return now if money >= PRICE else "Unpaid"
    end = bought[-1].end
    if now < end:
        due = buying is Buying.RENEWING and now >= end - DAY
        return end if due and money == RICH else "Active"
    if buying is not Buying.RENEWING:
        return "Expired"
    return now if money == RICH else "Unpaid"


TIMES = (0, 1, 29 * DAY - 1, 29 * DAY, 30 * DAY - 1, 30 * DAY, 30 * DAY + 1, 400 * DAY)
TABLE = [
    (buying, bought, money, now)
    for buying, bought, money, now in product(Buying, ((), (FIRST,)), (None, POOR, RICH), TIMES)
    if not (bought and money is None)
]


@pytest.mark.parametrize(("buying", "bought", "money", "now"), TABLE)
def test_every_state_time_money_and_buying(
    buying: Buying, bought: tuple[Term, ...], money: Nano | None, now: int
) -> None:
    step = decide_reservation(plan(buying), bought, OFFER, money, now)
    due = expected(buying, bought, money, now)
    if isinstance(step, Purchase):
        assert step == Purchase(
            Term(len(bought) + 1, step.term.start, step.term.start + 30 * DAY), Nano(PRICE)
        )
        assert step.term.start == due
    else:
        assert step.state.value == due
        assert step.current == len(bought)


def test_a_term_that_follows_is_bought_already() -> None:
    bought = (FIRST, Term(2, FIRST.end, FIRST.end + 30 * DAY))
    step = decide_reservation(plan(Buying.RENEWING), bought, OFFER, RICH, 30 * DAY - 1)
    assert step == ReservationOutcome(ACTIVE, 1, due=30 * DAY)
    step = decide_reservation(plan(Buying.RENEWING), bought, OFFER, RICH, 30 * DAY)
    assert step == ReservationOutcome(ACTIVE, 2, due=59 * DAY)


@pytest.mark.parametrize(("days", "ahead"), [(1, DAY // 2), (2, DAY), (30, DAY), (365, DAY)])
def test_the_next_term_is_bought_a_day_ahead_or_half_of_a_short_one(days: int, ahead: int) -> None:
    assert renewal_at(Term(1, 7, 7 + days * DAY)) == 7 + days * DAY - ahead


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"days": 7}, "no terms of 7 days, only of 1, 2, 30"),
        ({"input_tpm": 1_500}, "The model reserves multiples of 1000, but inputTPM is 1500"),
        ({"output_tpm": 50}, "The model reserves multiples of 100, but outputTPM is 50"),
        ({"input_tpm": 1_000 * MAX_NANO}, "64 bits"),
    ],
)
def test_an_offer_that_does_not_match_is_explained(changes: dict[str, int], sentence: str) -> None:
    values = {"input_tpm": 2_000, "output_tpm": 300, "days": 30} | changes
    wanted = ReservationPlan(**values, buying=Buying.RENEWING)
    price = term_price(wanted, OFFER)
    assert isinstance(price, str)
    assert sentence in price
    for state, bought, now in ((UNPAID, (), 0), (ACTIVE, (FIRST,), 29 * DAY)):
        step = decide_reservation(wanted, bought, OFFER, RICH, now)
        assert isinstance(step, ReservationOutcome)
        assert (step.state, step.reason) == (state, "NotOffered")
        assert step.message.startswith(price)


def test_a_model_without_an_offer_sells_no_term() -> None:
    step = decide_reservation(plan(Buying.ONCE), (), None, RICH, 0)
    assert isinstance(step, ReservationOutcome)
    assert (step.state, step.reason) == (UNPAID, "NotOffered")


def live(buying: Buying, days: int, moments: list[int], money: int) -> tuple[list[Term], int]:
    """Decide at each of these moments; returns the terms bought and the money left."""
    bought: list[Term] = []
    for now in moments:
        while isinstance(
            step := decide_reservation(plan(buying, days), bought, OFFER, Nano(money), now), Purchase
        ):
            bought.append(step.term)
            money -= step.price
    return bought, money


@pytest.mark.parametrize(("days", "terms"), [(1, 401), (2, 201), (30, 14)])
def test_through_400_days_each_term_is_bought_once(days: int, terms: int) -> None:
    hours = [hour * DAY // 24 for hour in range(400 * 24 + 1)]
    bought, money = live(Buying.RENEWING, days, hours, 10**9)
    assert [term.number for term in bought] == list(range(1, len(bought) + 1))
    assert all(one.end == other.start for one, other in pairwise(bought))
    price = term_price(plan(Buying.RENEWING, days), OFFER)
    assert isinstance(price, int)
    assert money == 10**9 - len(bought) * price
    assert terms <= len(bought) <= terms + 1
    again, _ = live(Buying.RENEWING, days, sorted(hours * 2), 10**9)
    assert again == bought, "however often it is judged"


@THOROUGH
@given(
    st.sampled_from(Buying),
    st.sampled_from(OFFER.terms),
    st.lists(st.integers(0, 400 * DAY), max_size=40).map(sorted),
    st.integers(0, 20 * PRICE),
)
def test_terms_never_overlap_and_never_begin_in_the_past(
    buying: Buying, days: int, moments: list[int], money: int
) -> None:
    bought, left = live(buying, days, moments, money)
    price = term_price(plan(buying, days), OFFER)
    assert isinstance(price, int)
    assert left == money - len(bought) * price >= 0
    assert len(bought) <= {Buying.NOTHING: 0, Buying.ONCE: 1, Buying.RENEWING: len(moments)}[buying]
    for one, other in pairwise(bought):
        assert one.end <= other.start
    for term in bought:
        assert term.end - term.start == days * DAY
        assert any(now <= term.start <= now + DAY for now in moments), "bought at most a day ahead"
