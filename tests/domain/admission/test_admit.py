"""The conditions of an admitted call: holds of Hard accounts, reservations, limit requests (B9, B15, B17)."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.domain.admission.estimates import ADDED_TOKENS
from farebox.domain.admission.rate_limits import effective_limit, period_status, sliding_status
from farebox.domain.admission.rules import check_limits
from farebox.domain.admission.types import (
    Denied,
    FreeTokens,
    KeyAllowance,
    MediaPieces,
    MediaTokens,
    Window,
)
from farebox.domain.billing.coverage import CallTokens
from farebox.domain.billing.money import Nano
from farebox.domain.billing.pricing import MAX_TOKENS, charge
from farebox.domain.facts import UNKNOWN
from tests.domain.admission.calling import HARD, NOW, NOW_MS, PAID, RESERVED, TIERS, Scenario, both, with_
from tests.domain.strategies import THOROUGH

POOR = with_("the_funds", available=Nano(0))
LIMITED = with_("the_service", rpm=60, tpm=10_000)


TEXT = 400 + ADDED_TOKENS
"""The most tokens that the body can have."""


def limits(scenario: Scenario) -> dict[str, tuple[int, int, int, bool]]:
    """Limit, required amount, optional amount and whether it is enforced, by dimension."""
    return {
        each.dimension: (each.limit, each.required, each.optional, each.enforced)
        for each in scenario.allowed().limit_requests
    }


def test_a_soft_account_commits_the_minimum_cost() -> None:
    allow = PAID.allowed()
    assert (allow.hold, allow.committed) == (None, 100 * 500), "400 bytes are 100 tokens at 500"


def test_a_hard_account_holds_the_maximum_cost() -> None:
    allow = HARD(PAID).allowed()
    assert allow.hold == TEXT * 500 + 100 * 1500, "400 bytes are at most 400 tokens"


def test_a_hold_may_use_the_whole_balance_and_no_more() -> None:
    most = HARD(PAID).allowed().hold
    assert most is not None
    assert both(HARD, with_("the_funds", available=most))(PAID).allowed().hold == most
    denied = both(HARD, with_("the_funds", available=Nano(most - 1)))(PAID).denied()
    assert (denied.status, denied.code) == (402, "insufficient_balance")
    assert "0.00085, " in denied.message
    assert "Lower max_tokens" in denied.message


def test_a_call_without_max_tokens_holds_the_models_ceiling() -> None:
    allow = both(HARD, with_("call", asked_output=None))(PAID).allowed()
    assert allow.output_bound == 8192
    assert allow.hold == TEXT * 500 + 8192 * 1500


def test_b28_media_counts_by_the_piece_and_not_by_its_bytes() -> None:
    """An account with little money must not look overdue to others because of one picture."""
    picture = MediaPieces(encoded_bytes=2_000_000, images=1)
    sent = both(LIMITED, with_("call", body_bytes=2_000_400, text_only=False, media=picture))
    allow = sent(PAID).allowed()
    assert allow.input_estimate == 100 + 1100
    assert allow.committed == (100 + 1100) * 500
    assert limits(sent(PAID))["tpm"][1] < 10_000
    counted = both(sent, with_("the_model", media=MediaTokens(image=7)))
    assert counted(PAID).allowed().input_estimate == 100 + 7


def test_b28_the_bound_of_media_is_the_context_whatever_a_piece_counts() -> None:
    picture = MediaPieces(encoded_bytes=300, images=1)
    sent = both(
        HARD, with_("call", text_only=False, media=picture), with_("the_model", context_tokens=50_000)
    )
    assert sent(PAID).allowed().input_bound == 50_000


def test_the_hold_covers_every_answer() -> None:
    allow = both(HARD, with_("call", choices=3))(PAID).allowed()
    assert allow.hold == TEXT * 500 + 3 * 100 * 1500


def test_an_image_holds_the_models_whole_context() -> None:
    images = both(HARD, with_("call", text_only=False))
    assert images(PAID).denied().code == "cost_unbounded"
    with_context = both(images, with_("the_model", context_tokens=131_072))
    assert with_context(PAID).allowed().hold == 131_072 * 800 + 100 * 2400


def test_each_input_of_a_list_may_fill_the_models_context() -> None:
    scenario = both(
        HARD,
        with_("the_model", context_tokens=100),
        with_("call", body_bytes=4000, inputs=30, asked_output=0),
    )(PAID)
    allow = scenario.allowed()
    assert allow.hold == 30 * 100 * 500
    assert allow.input_estimate == 1000, "of 4000 bytes, where one context would be 100"
    assert with_("call", inputs=1)(scenario).allowed().hold == 100 * 500


def test_a_call_counts_as_no_more_tokens_than_it_can_be_charged() -> None:
    """Otherwise a few calls a minute would overflow 64-bit counts."""
    endless = both(
        with_("the_model", max_output_tokens=0), with_("call", asked_output=2**31 - 1, choices=128)
    )
    assert limits(endless(RESERVED))["reservation_output"] == (1_000, MAX_TOKENS, 0, False)


def test_a_call_of_unbounded_cost_is_refused_on_a_hard_account() -> None:
    endless = both(with_("the_model", max_output_tokens=0), with_("call", asked_output=None))
    assert endless(PAID).allowed().hold is None
    assert both(HARD, endless)(PAID).denied().code == "cost_unbounded"


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
    scenario = both(
        HARD,
        with_("call", body_bytes=body, asked_output=asked, choices=choices),
        with_("the_funds", available=Nano(10**15)),
    )(PAID)
    hold = scenario.allowed().hold
    inputs, outputs = int(body * used[0]), int(asked * choices * used[1])
    cost = charge(TIERS, CallTokens(input=inputs, cached_input=int(inputs * used[2]), output=outputs))
    assert hold is not None
    assert cost <= hold


def test_a_free_quota_that_covers_the_call_commits_nothing() -> None:
    covered = replace(PAID, free=FreeTokens(200, NOW + timedelta(days=1)))
    allow = covered.allowed()
    assert (allow.covered, allow.committed) == (True, 0)
    for free in (FreeTokens(199, NOW + timedelta(days=1)), FreeTokens(200, NOW)):
        allow = replace(PAID, free=free).allowed()
        assert (allow.covered, allow.committed) == (False, 50_000)


def test_a_reservation_is_counted_and_not_enforced_while_money_pays_the_excess() -> None:
    assert limits(RESERVED) == {
        "reservation_input": (10_000, 100, 0, False),
        "reservation_output": (1_000, 100, 0, False),
    }
    assert RESERVED.allowed().committed == 0


@pytest.mark.parametrize(
    "change",
    [
        POOR,
        with_("the_funds", available=UNKNOWN),
        with_("the_funds", fresh=False),
        with_("the_service", postpaid=False),
        both(HARD, with_("the_funds", available=Nano(1))),
        both(HARD, with_("call", text_only=False)),
    ],
)
def test_a_reservation_in_force_is_enforced_when_nothing_else_pays(change: object) -> None:
    scenario = change(RESERVED)  # type: ignore[operator]
    assert {name: limit[3] for name, limit in limits(scenario).items()} == {
        "reservation_input": True,
        "reservation_output": True,
    }
    assert scenario.allowed().hold is None


def test_the_free_quota_pays_beyond_a_reservation_without_postpaid() -> None:
    scenario = with_("the_service", postpaid=False)(RESERVED)
    scenario = replace(scenario, free=FreeTokens(1, NOW + timedelta(days=1)))
    assert not limits(scenario)["reservation_input"][3]


def test_a_reservation_out_of_its_term_pays_nothing() -> None:
    over = with_("the_service", reservation=replace(RESERVED.the_service.reservation, end=NOW))  # type: ignore
    assert both(over, POOR)(RESERVED).denied().message == "endpoint is inactive: OVERDUE"
    assert limits(over(RESERVED)) == {}


def test_input_alone_reserved_serves_embeddings() -> None:
    scenario = with_("the_service", reservation=replace(RESERVED.the_service.reservation, output_tpm=0))(  # type: ignore
        RESERVED
    )
    scenario = both(POOR, with_("call", asked_output=0))(scenario)
    assert limits(scenario) == {"reservation_input": (10_000, 100, 0, True)}


def test_limit_requests_are_in_the_order_in_which_they_refuse() -> None:
    quota = with_("the_key", quota=KeyAllowance(5000, Window.DAY))
    assert limits(both(LIMITED, quota)(PAID)) == {
        "rpm": (60, 1, 0, True),
        "tpm": (10_000, 200, 0, True),
        "key_quota_day": (5000, 200, 0, True),
    }


def test_an_answer_of_unknown_length_is_optional_beyond_its_input() -> None:
    scenario = both(LIMITED, with_("call", asked_output=None))(PAID)
    assert limits(scenario)["tpm"] == (10_000, 100, 1000, True)
    short = both(LIMITED, with_("call", asked_output=None), with_("the_model", max_output_tokens=50))(PAID)
    assert limits(short)["tpm"] == (10_000, 100, 50, True)


@pytest.mark.parametrize(
    ("limit", "ceiling", "applies"), [(0, 0, 0), (5, 0, 5), (0, 7, 7), (5, 7, 5), (9, 7, 7)]
)
def test_the_models_ceiling_holds_for_every_service(limit: int, ceiling: int, applies: int) -> None:
    assert effective_limit(limit, ceiling) == applies
    scenario = both(with_("the_service", rpm=limit), with_("the_model", rpm=ceiling))(PAID)
    assert [each.limit for each in scenario.allowed().limit_requests] == ([applies] if applies else [])


def test_services_and_keys_do_not_share_counts() -> None:
    quota = with_("the_key", quota=KeyAllowance(5000, Window.MONTH))
    one = both(LIMITED, quota)(PAID).allowed().limit_requests
    counters = [each.counter for each in one]
    assert len(set(counters)) == len(counters)
    assert all("{team-a}" in counter for counter in counters)


def test_the_first_limit_that_is_exceeded_is_named() -> None:
    quota = with_("the_key", quota=KeyAllowance(5000, Window.DAY))
    rpm, tpm, day = both(LIMITED, quota)(PAID).allowed().limit_requests
    full = {NOW_MS // 1000: 10_000}
    limit_statuses = (
        sliding_status(rpm, {}, NOW_MS),
        sliding_status(tpm, full, NOW_MS),
        period_status(day, 5000, NOW_MS),
    )
    with pytest.raises(Denied) as caught:
        check_limits(limit_statuses)
    denied = caught.value
    assert (denied.status, denied.message) == (429, "rate limit exceeded on dimension: tpm")
    assert denied.exceeded == limit_statuses[1]
    check_limits(limit_statuses[:1])


def test_hard_accounts_with_a_reservation_hold_while_they_can() -> None:
    allow = HARD(RESERVED).allowed()
    assert allow.hold == TEXT * 500 + 100 * 1500
