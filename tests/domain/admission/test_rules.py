"""Each rule of admission by itself, and which of two speaks: the words that callers read (B13-B17)."""

import inspect
from dataclasses import replace
from datetime import timedelta
from itertools import combinations

import pytest

from farebox.api import StopReason
from farebox.domain.admission import rules
from farebox.domain.admission.addresses import parse_networks
from farebox.domain.admission.cases import Allow, Deny
from farebox.domain.admission.rules import admit, identify, look_up
from farebox.domain.admission.types import FreeTokens
from farebox.domain.billing.money import Nano
from farebox.domain.facts import UNKNOWN
from tests.domain.admission.calling import (
    CHAT,
    ELSEWHERE,
    HARD,
    NOW,
    PAID,
    RESERVED,
    TERM,
    TRIAL,
    Change,
    World,
    both,
    with_,
    without,
)

EVERYONES: dict[str, tuple[Change, int, str]] = {
    "key_known": (without("the_key"), 401, "invalid_api_key"),
    "key_enabled": (with_("the_key", disabled=True), 401, "api_key_disabled"),
    "key_in_time": (with_("the_key", expires_at=NOW), 401, "api_key_expired"),
    "key_from_address": (with_("the_key", networks=ELSEWHERE), 403, "address_not_allowed"),
    "key_bound": (with_("the_key", services=frozenset({"other"})), 403, "service_not_allowed"),
    "service_known": (without("the_service"), 404, "model_not_found"),
    "service_from_address": (with_("the_service", networks=ELSEWHERE), 403, "address_not_allowed"),
    "service_enabled": (
        with_("the_service", postpaid=False, trial=False, reserves=False),
        402,
        "endpoint_inactive",
    ),
    "model_served": (with_("the_model", retired=True), 402, "endpoint_inactive"),
    "service_active": (with_("the_service", inactive="NoReplicaReady"), 402, "endpoint_inactive"),
    "output_within_ceiling": (with_("call", asked_output=8193), 400, "max_tokens_above_ceiling"),
}
OF_MONEY: dict[str, tuple[Change, int, str]] = {
    "money_known": (with_("the_funds", fresh=False), 503, "balance_unknown"),
    "not_overdue": (with_("the_funds", available=Nano(0)), 402, "endpoint_inactive"),
    "cost_bounded": (both(HARD, with_("call", text_only=lambda: False)), 400, "cost_unbounded"),
    "hold_covered": (both(HARD, with_("call", choices=1_000_000)), 402, "insufficient_balance"),
}
OF_TRIALS: dict[str, tuple[Change, int, str]] = {
    "free_tokens_known": (with_("the_funds", fresh=False), 503, "quota_unknown"),
    "free_tokens_in_time": (with_("free", expires_at=NOW), 402, "endpoint_inactive"),
    "free_tokens_left": (with_("free", left=0), 402, "endpoint_inactive"),
}
OF_RESERVATIONS: dict[str, tuple[Change, int, str]] = {
    "reservation_covers": (
        both(
            with_("the_service", reservation=replace(TERM, output_tpm=0)),
            with_("the_funds", available=Nano(0)),
        ),
        402,
        "reservation_exceeded",
    ),
}
GROUPS = ((PAID, OF_MONEY), (TRIAL, OF_TRIALS), (RESERVED, OF_RESERVATIONS))
CASES = [
    pytest.param(base, *broken, id=f"{name}-{index}")
    for index, (base, group) in enumerate(GROUPS)
    for name, broken in {**EVERYONES, **group}.items()
]
PAIRS = [
    pytest.param(base, first[1], second[1], id=f"{first[0]}-{second[0]}-{index}")
    for index, (base, group) in enumerate(GROUPS)
    for first, second in combinations({**EVERYONES, **group}.items(), 2)
]


def test_every_rule_has_a_case() -> None:
    named = [*EVERYONES, *OF_MONEY, *OF_TRIALS, *OF_RESERVATIONS]
    of_all = {"admit", "identify", "look_up", "admit_known", "limit_refusal"}
    found = [
        name
        for name, value in vars(rules).items()
        if inspect.isfunction(value) and value.__module__ == rules.__name__ and name[0] != "_"
    ]
    assert sorted(named) == sorted(set(found) - of_all)


@pytest.mark.parametrize("world", [PAID, TRIAL, RESERVED])
def test_all_is_well_and_the_call_is_admitted(world: World) -> None:
    grant = world.granted()
    assert (grant.key, grant.service, grant.model) == (world.the_key, world.the_service, world.the_model)


@pytest.mark.parametrize(("base", "change", "status", "code"), CASES)
def test_each_rule_refuses_by_itself(base: World, change: Change, status: int, code: str) -> None:
    refusal = change(base).refused()
    assert (refusal.status, refusal.code) == (status, code)


@pytest.mark.parametrize(("base", "first", "second"), PAIRS)
def test_of_two_refusals_the_earlier_rule_speaks(
    base: World, first: tuple[Change, int, str], second: tuple[Change, int, str]
) -> None:
    alone = first[0](base).refused()
    assert second[0](first[0](base)).refused().code == alone.code
    assert first[0](second[0](base)).refused().code == alone.code


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (with_("the_service", postpaid=False), "POSTPAID_DISABLED"),
        (without("the_model"), "MODEL_NOT_FOUND"),
        (with_("the_model", retired=True), "MODEL_RETIRED"),
        (with_("the_funds", available=Nano(0)), "OVERDUE"),
        (with_("the_funds", available=Nano(-1)), "OVERDUE"),
        *((with_("the_service", inactive=reason.value), reason.name) for reason in StopReason),
        (with_("the_service", inactive="ScaledToZero"), "SCALED_TO_ZERO"),
    ],
)
def test_an_inactive_endpoint_says_why(change: Change, word: str) -> None:
    refusal = change(PAID).refused()
    assert (refusal.status, refusal.message) == (402, f"endpoint is inactive: {word}")


def test_switching_off_acts_before_the_operator_has_seen_it() -> None:
    switched_off = with_("the_service", postpaid=False, inactive="")(PAID)
    assert switched_off.refused().message == "endpoint is inactive: POSTPAID_DISABLED"


@pytest.mark.parametrize("word", ["FREE_QUOTA_EXPIRED", "FREE_QUOTA_EXHAUSTED"])
def test_a_trial_ends_with_its_quota(word: str) -> None:
    change = with_("free", left=0) if word.endswith("EXHAUSTED") else with_("free", expires_at=NOW)
    assert change(TRIAL).refused().message == f"endpoint is inactive: {word}"


def test_the_last_free_token_admits_a_call_that_crosses_the_line() -> None:
    assert with_("free", left=1)(TRIAL).granted().committed == 0


def test_a_trial_whose_quota_nobody_told_follows_the_operators_word() -> None:
    told_nothing = replace(TRIAL, free=UNKNOWN)
    assert told_nothing.granted().hold is None
    assert with_("the_service", inactive="FreeQuotaExhausted")(told_nothing).refused().status == 402


def test_a_trial_never_needs_money() -> None:
    poor = both(HARD, with_("the_funds", available=UNKNOWN))(TRIAL)
    grant = poor.granted()
    assert (grant.hold, grant.committed) == (None, 0)


def test_a_key_bound_elsewhere_does_not_learn_what_exists() -> None:
    bound = with_("the_key", services=frozenset({"other"}))
    assert bound(PAID).refused() == without("the_service")(bound(PAID)).refused()


def test_a_key_calls_in_its_own_namespace_only() -> None:
    foreign = with_("the_service", key=replace_namespace("team-b"))(PAID)
    assert foreign.refused().code == "model_not_found"


def replace_namespace(namespace: str) -> object:
    return CHAT._replace(namespace=namespace)


def test_a_list_that_cannot_be_read_lets_nobody_in() -> None:
    assert with_("the_key", networks=None)(PAID).refused().code == "address_not_allowed"
    assert with_("the_service", networks=None)(PAID).refused().code == "address_not_allowed"


def test_a_client_whose_address_is_not_known_is_in_no_list() -> None:
    nowhere = with_("call", address=None)(PAID)
    assert isinstance(nowhere.admit(), Allow)
    everywhere = parse_networks(["0.0.0.0/0", "::/0"])
    assert with_("the_key", networks=everywhere)(nowhere).refused().status == 403


def test_a_key_is_good_until_its_last_moment() -> None:
    later = with_("the_key", expires_at=NOW + timedelta(microseconds=1))(PAID)
    assert isinstance(later.admit(), Allow)


def test_listing_asks_of_the_key_alone() -> None:
    for world in (without("the_service")(PAID), with_("the_funds", available=UNKNOWN)(PAID)):
        assert identify(world.call, world, NOW) == world.the_key
    refused = with_("the_key", disabled=True)(PAID)
    assert isinstance(identify(refused.call, refused, NOW), Deny)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (with_("the_key"), ""),
        (with_("the_key", services=frozenset({"chat"})), ""),
        (with_("the_key", services=frozenset({"other"})), "service_not_allowed"),
        (without("the_service"), "model_not_found"),
        (with_("the_service", networks=ELSEWHERE), "address_not_allowed"),
        (with_("the_service", inactive="Overdue"), ""),
        (with_("the_service", key=replace_namespace("team-b")), "model_not_found"),
    ],
)
def test_a_key_learns_of_what_it_may_call(change: Change, code: str) -> None:
    world = change(PAID)
    assert world.the_key is not None
    found = look_up(world.call, world.the_key, world)
    if code:
        assert isinstance(found, Deny)
        assert found.code == code == world.refused().code
    else:
        assert found == world.the_service


def test_admission_is_a_function_of_its_arguments() -> None:
    world = replace(PAID, free=FreeTokens(5, NOW + timedelta(days=1)))
    assert admit(world.call, world, NOW) == admit(world.call, world, NOW)
