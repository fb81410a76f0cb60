"""Each rule of admission alone, the order of the rules, and the errors that callers read (B13-B17)."""

import inspect
from dataclasses import replace
from datetime import timedelta
from itertools import combinations

import pytest

from farebox.api import StopReason
from farebox.domain.admission import rules
from farebox.domain.admission.addresses import parse_networks
from farebox.domain.admission.rules import admit, identify, look_up
from farebox.domain.admission.types import Allow, Denied, FreeTokens
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
    Scenario,
    both,
    with_,
    without,
)

ALWAYS: dict[str, tuple[Change, int, str]] = {
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
    "cost_bounded": (both(HARD, with_("call", text_only=False)), 400, "cost_unbounded"),
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
SCENARIOS = [
    pytest.param(base, *broken, id=f"{name}-{index}")
    for index, (base, group) in enumerate(GROUPS)
    for name, broken in {**ALWAYS, **group}.items()
]
PAIRS = [
    pytest.param(base, first[1], second[1], id=f"{first[0]}-{second[0]}-{index}")
    for index, (base, group) in enumerate(GROUPS)
    for first, second in combinations({**ALWAYS, **group}.items(), 2)
]


def test_every_rule_has_a_case() -> None:
    named = [*ALWAYS, *OF_MONEY, *OF_TRIALS, *OF_RESERVATIONS]
    of_all = {"admit", "identify", "look_up", "admit_known", "check_limits", "balance_unknown"}
    found = [
        name
        for name, value in vars(rules).items()
        if inspect.isfunction(value) and value.__module__ == rules.__name__ and name[0] != "_"
    ]
    assert sorted(named) == sorted(set(found) - of_all)


@pytest.mark.parametrize("scenario", [PAID, TRIAL, RESERVED])
def test_a_call_that_no_rule_refuses_is_admitted(scenario: Scenario) -> None:
    allow = scenario.allowed()
    assert (allow.key, allow.service, allow.model) == (
        scenario.the_key,
        scenario.the_service,
        scenario.the_model,
    )


@pytest.mark.parametrize(("base", "change", "status", "code"), SCENARIOS)
def test_each_rule_refuses_alone(base: Scenario, change: Change, status: int, code: str) -> None:
    denied = change(base).denied()
    assert (denied.status, denied.code) == (status, code)


@pytest.mark.parametrize(("base", "first", "second"), PAIRS)
def test_the_earlier_of_two_rules_refuses(
    base: Scenario, first: tuple[Change, int, str], second: tuple[Change, int, str]
) -> None:
    alone = first[0](base).denied()
    assert second[0](first[0](base)).denied().code == alone.code
    assert first[0](second[0](base)).denied().code == alone.code


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
def test_an_inactive_endpoint_reports_its_reason(change: Change, word: str) -> None:
    denied = change(PAID).denied()
    assert (denied.status, denied.message) == (402, f"endpoint is inactive: {word}")


def test_switching_off_acts_before_the_operator_has_reacted() -> None:
    switched_off = with_("the_service", postpaid=False, inactive="")(PAID)
    assert switched_off.denied().message == "endpoint is inactive: POSTPAID_DISABLED"


@pytest.mark.parametrize("word", ["FREE_QUOTA_EXPIRED", "FREE_QUOTA_EXHAUSTED"])
def test_a_trial_ends_with_its_quota(word: str) -> None:
    change = with_("free", left=0) if word.endswith("EXHAUSTED") else with_("free", expires_at=NOW)
    assert change(TRIAL).denied().message == f"endpoint is inactive: {word}"


def test_the_last_free_token_admits_a_call_that_crosses_the_line() -> None:
    assert with_("free", left=1)(TRIAL).allowed().committed == 0


def test_a_trial_of_unknown_quota_follows_the_operators_status() -> None:
    unknown = replace(TRIAL, free=UNKNOWN)
    assert unknown.allowed().hold is None
    assert with_("the_service", inactive="FreeQuotaExhausted")(unknown).denied().status == 402


def test_a_trial_never_needs_money() -> None:
    poor = both(HARD, with_("the_funds", available=UNKNOWN))(TRIAL)
    allow = poor.allowed()
    assert (allow.hold, allow.committed) == (None, 0)


def test_a_key_bound_to_other_services_does_not_learn_what_exists() -> None:
    bound = with_("the_key", services=frozenset({"other"}))
    known, unknown = bound(PAID).denied(), without("the_service")(bound(PAID)).denied()
    assert (known.status, known.code, known.message) == (unknown.status, unknown.code, unknown.message)


def test_a_key_calls_in_its_own_namespace_only() -> None:
    foreign = with_("the_service", key=replace_namespace("team-b"))(PAID)
    assert foreign.denied().code == "model_not_found"


def replace_namespace(namespace: str) -> object:
    return CHAT._replace(namespace=namespace)


def test_an_unreadable_address_list_admits_no_client() -> None:
    assert with_("the_key", networks=None)(PAID).denied().code == "address_not_allowed"
    assert with_("the_service", networks=None)(PAID).denied().code == "address_not_allowed"


def test_a_client_of_unknown_address_is_in_no_list() -> None:
    nowhere = with_("call", address=None)(PAID)
    assert isinstance(nowhere.allowed(), Allow)
    everywhere = parse_networks(["0.0.0.0/0", "::/0"])
    assert with_("the_key", networks=everywhere)(nowhere).denied().status == 403


def test_a_key_is_valid_until_the_moment_it_expires() -> None:
    later = with_("the_key", expires_at=NOW + timedelta(microseconds=1))(PAID)
    assert isinstance(later.allowed(), Allow)


def test_listing_models_checks_only_the_key() -> None:
    for scenario in (without("the_service")(PAID), with_("the_funds", available=UNKNOWN)(PAID)):
        assert identify(scenario.call, scenario, NOW) == scenario.the_key
    refused = with_("the_key", disabled=True)(PAID)
    with pytest.raises(Denied, match="disabled"):
        identify(refused.call, refused, NOW)


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
def test_a_key_sees_the_services_that_it_may_call(change: Change, code: str) -> None:
    scenario = change(PAID)
    assert scenario.the_key is not None
    if code:
        with pytest.raises(Denied) as caught:
            look_up(scenario.call, scenario.the_key, scenario)
        assert caught.value.code == code == scenario.denied().code
    else:
        assert look_up(scenario.call, scenario.the_key, scenario) == scenario.the_service


def test_admission_is_a_function_of_its_arguments() -> None:
    scenario = replace(PAID, free=FreeTokens(5, NOW + timedelta(days=1)))
    assert admit(scenario.call, scenario, NOW) == admit(scenario.call, scenario, NOW)
