"""What a grant asks for: holds of Hard accounts, reservations, demands on limits (B9, B15, B17)."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.domain.admission.demands import effective_limit
from farebox.domain.admission.estimates import ADDED_TOKENS
from farebox.domain.admission.rate_limits import Window, period_status, sliding_status
from farebox.domain.admission.rules import limit_refusal
from farebox.domain.admission.types import FreeTokens, KeyAllowance
from farebox.domain.billing.money import Nano
from farebox.domain.billing.pricing import MAX_TOKENS, charge
from farebox.domain.facts import UNKNOWN
from tests.domain.admission.calling import HARD, NOW, NOW_MS, PAID, RESERVED, TIERS, World, both, with_
from tests.domain.strategies import THOROUGH

POOR = with_("the_funds", available=Nano(0))
LIMITED = with_("the_service", rpm=60, tpm=10_000)


TEXT = 400 + ADDED_TOKENS
"""The most that the body's text can be."""


def demanded(world: World) -> dict[str, tuple[int, int, int, bool]]:
    """Limit, must, may and binding by dimension."""
    return {
        d.dimension: (d.limit, d.required, d.optional, d.enforced) for d in world.granted().limit_requests
    }


def test_soft_commits_what_is_spent_for_sure() -> None:
    grant = PAID.granted()
    assert (grant.hold, grant.committed) == (None, 100 * 500), "400 bytes are 100 tokens at 500"


def test_hard_holds_the_most_that_the_call_can_cost() -> None:
    grant = HARD(PAID).granted()
    assert grant.hold == TEXT * 500 + 100 * 1500, "400 bytes are at most 400 tokens"


def test_a_hold_may_take_the_last_of_the_balance_and_no_more() -> None:
    most = HARD(PAID).granted().hold
    assert most is not None
    assert both(HARD, with_("the_funds", available=most))(PAID).granted().hold == most
    refusal = both(HARD, with_("the_funds", available=Nano(most - 1)))(PAID).refused()
    assert (refusal.status, refusal.code) == (402, "insufficient_balance")
    assert "0.00085, " in refusal.message
    assert "lower max_tokens" in refusal.message


def test_without_a_word_of_the_caller_the_models_ceiling_is_held() -> None:
    grant = both(HARD, with_("call", asked_output=None))(PAID).granted()
    assert grant.output_bound == 8192
    assert grant.hold == TEXT * 500 + 8192 * 1500


def test_a_body_is_searched_for_what_is_not_text_once_and_only_to_hold_money() -> None:
    searches: list[World] = []
    for world in (PAID, HARD(PAID), HARD(RESERVED)):
        counted = with_("call", text_only=lambda world=world: searches.append(world) or True)
        counted(world).granted()
    assert searches == [HARD(PAID), HARD(RESERVED)], "it may be long"


def test_several_answers_are_held_for_each() -> None:
    grant = both(HARD, with_("call", choices=3))(PAID).granted()
    assert grant.hold == TEXT * 500 + 3 * 100 * 1500


def test_an_image_is_held_as_the_models_whole_context() -> None:
    images = both(HARD, with_("call", text_only=lambda: False))
    assert images(PAID).refused().code == "cost_unbounded"
    with_context = both(images, with_("the_model", context_tokens=131_072))
    assert with_context(PAID).granted().hold == 131_072 * 800 + 100 * 2400


def test_each_input_of_a_list_may_fill_the_models_context() -> None:
    world = both(
        HARD,
        with_("the_model", context_tokens=100),
        with_("call", body_bytes=4000, inputs=30, asked_output=0),
    )(PAID)
    grant = world.granted()
    assert grant.hold == 30 * 100 * 500
    assert grant.input_estimate == 1000, "of 4000 bytes, where one context would be 100"
    assert with_("call", inputs=1)(world).granted().hold == 100 * 500


def test_a_call_counts_as_no_more_tokens_than_it_can_be_charged() -> None:
    """Or a few calls of a minute would be more than 64 bits count."""
    endless = both(
        with_("the_model", max_output_tokens=0), with_("call", asked_output=2**31 - 1, choices=128)
    )
    assert demanded(endless(RESERVED))["reservation_output"] == (1_000, MAX_TOKENS, 0, False)


def test_a_call_that_nothing_bounds_is_refused_where_it_must_be_held() -> None:
    endless = both(with_("the_model", max_output_tokens=0), with_("call", asked_output=None))
    assert endless(PAID).granted().hold is None
    assert both(HARD, endless)(PAID).refused().code == "cost_unbounded"


@THOROUGH
@given(
    body=st.integers(1, 200_000),
    asked=st.integers(1, 8192),
    choices=st.integers(1, 4),
    used=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
)
def test_no_call_costs_more_than_its_hold(
    body: int, asked: int, choices: int, used: tuple[float, float, float]
) -> None:
    world = both(
        HARD,
        with_("call", body_bytes=body, asked_output=asked, choices=choices),
        with_("the_funds", available=Nano(10**15)),
    )(PAID)
    hold = world.granted().hold
    inputs, outputs = int(body * used[0]), int(asked * choices * used[1])
    cost = charge(TIERS, inputs, int(inputs * used[2]), outputs)
    assert hold is not None
    assert cost <= hold


def test_a_free_quota_that_covers_the_call_commits_nothing() -> None:
    covered = replace(PAID, free=FreeTokens(200, NOW + timedelta(days=1)))
    grant = covered.granted()
    assert (grant.covered, grant.committed) == (True, 0)
    for free in (FreeTokens(199, NOW + timedelta(days=1)), FreeTokens(200, NOW)):
        grant = replace(PAID, free=free).granted()
        assert (grant.covered, grant.committed) == (False, 50_000)


def test_a_reservation_counts_and_refuses_nothing_while_money_pays_the_rest() -> None:
    assert demanded(RESERVED) == {
        "reservation_input": (10_000, 100, 0, False),
        "reservation_output": (1_000, 100, 0, False),
    }
    assert RESERVED.granted().committed == 0


@pytest.mark.parametrize(
    "change",
    [
        POOR,
        with_("the_funds", available=UNKNOWN),
        with_("the_funds", fresh=False),
        with_("the_service", postpaid=False),
        both(HARD, with_("the_funds", available=Nano(1))),
        both(HARD, with_("call", text_only=lambda: False)),
    ],
)
def test_a_reservation_in_force_admits_within_its_minute_when_nothing_else_pays(change: object) -> None:
    world = change(RESERVED)  # type: ignore[operator]
    assert {name: demand[3] for name, demand in demanded(world).items()} == {
        "reservation_input": True,
        "reservation_output": True,
    }
    assert world.granted().hold is None


def test_beyond_a_reservation_without_postpaid_the_free_quota_pays() -> None:
    world = with_("the_service", postpaid=False)(RESERVED)
    world = replace(world, free=FreeTokens(1, NOW + timedelta(days=1)))
    assert not demanded(world)["reservation_input"][3]


def test_a_reservation_out_of_its_term_pays_nothing() -> None:
    over = with_("the_service", reservation=replace(RESERVED.the_service.reservation, end=NOW))  # type: ignore
    assert both(over, POOR)(RESERVED).refused().message == "endpoint is inactive: OVERDUE"
    assert demanded(over(RESERVED)) == {}


def test_input_alone_reserved_serves_embeddings() -> None:
    world = with_("the_service", reservation=replace(RESERVED.the_service.reservation, output_tpm=0))(  # type: ignore
        RESERVED
    )
    world = both(POOR, with_("call", asked_output=0))(world)
    assert demanded(world) == {"reservation_input": (10_000, 100, 0, True)}


def test_limits_are_demanded_in_the_order_in_which_they_refuse() -> None:
    quota = with_("the_key", quota=KeyAllowance(5000, Window.DAY))
    assert demanded(both(LIMITED, quota)(PAID)) == {
        "rpm": (60, 1, 0, True),
        "tpm": (10_000, 200, 0, True),
        "key_quota_day": (5000, 200, 0, True),
    }


def test_an_answer_of_unknown_length_takes_what_room_there_is() -> None:
    world = both(LIMITED, with_("call", asked_output=None))(PAID)
    assert demanded(world)["tpm"] == (10_000, 100, 1000, True)
    short = both(LIMITED, with_("call", asked_output=None), with_("the_model", max_output_tokens=50))(PAID)
    assert demanded(short)["tpm"] == (10_000, 100, 50, True)


@pytest.mark.parametrize(
    ("limit", "ceiling", "applies"), [(0, 0, 0), (5, 0, 5), (0, 7, 7), (5, 7, 5), (9, 7, 7)]
)
def test_the_models_ceiling_holds_for_every_service(limit: int, ceiling: int, applies: int) -> None:
    assert effective_limit(limit, ceiling) == applies
    world = both(with_("the_service", rpm=limit), with_("the_model", rpm=ceiling))(PAID)
    assert [demand.limit for demand in world.granted().limit_requests] == ([applies] if applies else [])


def test_services_and_keys_do_not_share_counts() -> None:
    quota = with_("the_key", quota=KeyAllowance(5000, Window.MONTH))
    one = both(LIMITED, quota)(PAID).granted().limit_requests
    counters = [demand.counter for demand in one]
    assert len(set(counters)) == len(counters)
    assert all("{team-a}" in counter for counter in counters)


def test_the_first_limit_that_is_exceeded_is_named() -> None:
    quota = with_("the_key", quota=KeyAllowance(5000, Window.DAY))
    rpm, tpm, day = both(LIMITED, quota)(PAID).granted().limit_requests
    full = {NOW_MS // 1000: 10_000}
    limit_statuses = (
        sliding_status(rpm, {}, NOW_MS),
        sliding_status(tpm, full, NOW_MS),
        period_status(day, 5000, NOW_MS),
    )
    refusal = limit_refusal(limit_statuses)
    assert refusal is not None
    assert (refusal.status, refusal.message) == (429, "rate limit exceeded on dimension: tpm")
    assert refusal.exceeded == limit_statuses[1]
    assert limit_refusal(limit_statuses[:1]) is None


def test_hard_accounts_with_a_reservation_hold_while_they_can() -> None:
    grant = HARD(RESERVED).granted()
    assert grant.hold == TEXT * 500 + 100 * 1500
