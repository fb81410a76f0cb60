"""The Default services of an account (B1)."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.api import ConditionStatus, ServiceType
from farebox.domain.default_services import (
    ExistingService,
    SiblingAccount,
    creation_refused,
    plan_default_services,
)
from farebox.domain.keys import ObjectKey
from tests.domain.build import NOW
from tests.domain.strategies import THOROUGH

ACME = SiblingAccount(ObjectKey("team-a", "acme"), NOW, "uid-b")
OLDER = SiblingAccount(ObjectKey("team-a", "older"), NOW - timedelta(days=1), "uid-z")
TWIN = SiblingAccount(ObjectKey("team-a", "twin"), NOW, "uid-a")
YOUNGER = SiblingAccount(ObjectKey("team-a", "younger"), NOW + timedelta(days=1), "uid-a")

OWN = ExistingService(ServiceType.DEFAULT, ACME.key, pristine=True)
ENABLED = ExistingService(ServiceType.DEFAULT, ACME.key, pristine=False)
USERS = ExistingService(ServiceType.CUSTOM, ACME.key, pristine=False)
OF_OTHER = ExistingService(ServiceType.DEFAULT, OLDER.key, pristine=True)


def test_b1_every_selected_model_gets_a_default_service() -> None:
    plan = plan_default_services(ACME, [ACME], ["b", "a", "b"], {})
    assert (plan.create, plan.delete) == (("a", "b"), ())
    assert (plan.condition.status, plan.condition.reason) == (ConditionStatus.TRUE, "Ready")


@pytest.mark.parametrize("there", [OWN, ENABLED])
def test_an_existing_default_service_is_not_created_again(there: ExistingService) -> None:
    plan = plan_default_services(ACME, [ACME], ["a"], {"a": there})
    assert (plan.create, plan.delete, plan.condition.reason) == ((), (), "Ready")


@pytest.mark.parametrize("there", [USERS, OF_OTHER])
def test_b1_another_owners_service_stays_unchanged_and_is_reported(there: ExistingService) -> None:
    plan = plan_default_services(ACME, [ACME], ["a", "b"], {"a": there})
    assert (plan.create, plan.delete) == (("b",), ())
    assert (plan.condition.status, plan.condition.reason) == (ConditionStatus.FALSE, "NameTaken")
    assert "Default services a and stay unchanged" in plan.condition.message


def test_a_long_list_of_taken_names_is_truncated() -> None:
    names = [f"model-{number:02}" for number in range(12)]
    plan = plan_default_services(ACME, [ACME], names, dict.fromkeys(names, USERS))
    assert "model-09 and 2 more" in plan.condition.message
    assert "model-10" not in plan.condition.message


def test_a_rejection_is_reported_with_the_api_servers_message() -> None:
    said = creation_refused({"b": "exceeded quota: few", "a": "exceeded quota: few"})
    assert (said.status, said.reason) == (ConditionStatus.FALSE, "Refused")
    assert said.message == "The API server rejects the Default services a, b: exceeded quota: few"


@pytest.mark.parametrize(
    ("neighbours", "owner"),
    [([OLDER], OLDER), ([ACME, OLDER, YOUNGER], OLDER), ([TWIN], TWIN), ([YOUNGER], ACME), ([], ACME)],
)
def test_b1_of_several_accounts_the_oldest_has_the_default_services(
    neighbours: list[SiblingAccount], owner: SiblingAccount
) -> None:
    """Of two accounts of the same second the uid decides, so that both come to the same result."""
    plan = plan_default_services(ACME, neighbours, ["a"], {"a": OWN})
    if owner is ACME:
        assert (plan.delete, plan.condition.reason) == ((), "Ready")
    else:
        assert (plan.create, plan.delete) == ((), ("a",))
        assert (plan.condition.status, plan.condition.reason) == (ConditionStatus.FALSE, "OtherAccount")
        assert str(owner.key) in plan.condition.message


def test_an_account_without_default_services_is_ready() -> None:
    plan = plan_default_services(ACME, [OLDER], [], {})
    assert (plan.create, plan.delete, plan.condition.reason) == ((), (), "Ready")


def test_a_service_that_is_no_longer_selected_is_deleted_unless_it_was_enabled() -> None:
    plan = plan_default_services(ACME, [ACME], ["a"], {"b": OWN, "c": ENABLED, "d": USERS, "e": OF_OTHER})
    assert (plan.create, plan.delete) == (("a",), ("b",))


accounts = st.sampled_from((ACME, OLDER, TWIN, YOUNGER))
services = st.builds(
    ExistingService,
    type=st.sampled_from(ServiceType),
    account=accounts.map(lambda account: account.key),
    pristine=st.booleans(),
)


@THOROUGH
@given(
    st.lists(accounts), st.lists(st.sampled_from("abcd")), st.dictionaries(st.sampled_from("abcd"), services)
)
def test_b20_after_a_plan_is_carried_out_the_next_one_is_empty(
    neighbours: list[SiblingAccount], selected: list[str], existing: dict[str, ExistingService]
) -> None:
    """No plan deletes what a user created or enabled, or what another account has."""
    plan = plan_default_services(ACME, neighbours, selected, existing)
    for name in plan.delete:
        assert existing[name].pristine
        assert existing[name].account == ACME.key
    assert not set(plan.create) & set(existing)
    after = {name: service for name, service in existing.items() if name not in plan.delete}
    after |= dict.fromkeys(plan.create, OWN)
    again = plan_default_services(ACME, neighbours, selected, after)
    assert (again.create, again.delete) == ((), ())


@THOROUGH
@given(st.lists(accounts, min_size=1, unique=True), st.sampled_from("ab"))
def test_b1_exactly_one_account_of_a_namespace_creates_a_service(
    neighbours: list[SiblingAccount], model: str
) -> None:
    plans = [plan_default_services(account, neighbours, [model], {}) for account in neighbours]
    assert [plan.create for plan in plans].count((model,)) == 1
