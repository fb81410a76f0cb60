"""Default services: one for each account and model, made, given up and enabled (B1, B2)."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.integration.tenants import SECONDS, Tenant
from tests.support.api import ApiError, manifest, path_of
from tests.support.waiting import wait_for

pytestmark = pytest.mark.plane

ALL = {"models": "All"}


def enabling_yaml(tenant: Tenant, model: str, account: str = "acme") -> str:
    """What a user keeps in Git to have a Default service enabled."""
    return f"""
apiVersion: farebox.dev/v1alpha1
kind: InferenceService
metadata: {{name: {model}, namespace: {tenant.namespace}}}
spec:
  type: Default
  modelRef: {{name: {model}}}
  billingAccountRef: {{name: {account}}}
  postpaid: true
"""


def names(tenant: Tenant) -> set[str]:
    items = tenant.api.get(path_of("InferenceService", tenant.namespace))["items"]
    return {item["metadata"]["name"] for item in items}


def wait_names(tenant: Tenant, *expected: str) -> None:
    def look() -> bool:
        found = names(tenant)
        assert found == set(expected), found
        return True

    wait_for(f"the services are {expected}", look, SECONDS)


def later_second(tenant: Tenant, account: str) -> None:
    """Wait until objects made now are younger than an account: times of creation are whole seconds."""
    created = tenant.get(account, "BillingAccount")["metadata"]["creationTimestamp"]
    wait_for("the next second", lambda: datetime.now(UTC) >= second_after(created), SECONDS)


def second_after(timestamp: str) -> datetime:
    made = datetime.fromisoformat(timestamp.replace("Z", "+00:00"))
    return datetime.fromtimestamp(made.timestamp() + 1, UTC)


def test_b1_every_model_yields_one_default_service_for_an_account(tenant: Tenant) -> None:
    first, second = tenant.model("first"), tenant.model("second.dotted-7b")
    tenant.account(defaultServices=ALL)
    third = tenant.model("published-later")
    for model in (first, second, third):
        wait_for(f"{model} exists", lambda model=model: model in names(tenant), SECONDS)  # type: ignore[misc]
        status = tenant.wait_state(model, "NotEnabled", "PostpaidDisabled")
        assert (status["billingMode"], status["replicas"]) == ("None", 0)
        tenant.wait_condition(model, "Ready", "True", "NotEnabled")
        tenant.wait_condition(model, "Serving", "False", "PostpaidDisabled")
        assert tenant.get(model)["spec"]["type"] == "Default"
        assert tenant.shared_backend(model) is None
    tenant.wait_account(services={"notEnabled": 3, "creating": 0, "running": 0, "stopped": 0})
    tenant.wait_condition("acme", "DefaultServices", "True", kind="BillingAccount")
    assert names(tenant) == {first, second, third}


def test_b1_models_in_other_currencies_yield_none(tenant: Tenant) -> None:
    model = tenant.model()
    foreign = tenant.model("foreign", prices={"currency": "ZZZ", "tiers": [zero_tier()]})
    tenant.account(defaultServices=ALL)
    tenant.wait_condition("acme", "DefaultServices", "True", kind="BillingAccount")
    wait_names(tenant, model)
    assert foreign not in names(tenant)


def zero_tier() -> dict[str, str]:
    return {"input": "0", "cachedInput": "0", "output": "0"}


def test_b1_a_name_that_a_user_took_first_is_left_alone_and_reported(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.service(model, model, dedicated=False, postpaid=False, limits={"rpm": 7})
    tenant.wait_state(model, "Stopped", "AccountNotFound", "PostpaidDisabled")
    before = tenant.get(model)
    tenant.account(defaultServices=ALL)
    condition = tenant.wait_condition("acme", "DefaultServices", "False", "NameTaken", kind="BillingAccount")
    assert model in condition["message"]
    tenant.wait_state(model, "Stopped", "PostpaidDisabled")
    after = tenant.get(model)
    assert (after["spec"], after["metadata"]["uid"]) == (before["spec"], before["metadata"]["uid"])
    # With the user's service gone the name is free, and the account gets what it lacked.
    tenant.api.delete(path_of("InferenceService", tenant.namespace, model))
    tenant.wait_condition("acme", "DefaultServices", "True", kind="BillingAccount")
    wait_for("the Default one", lambda: tenant.get(model)["spec"]["type"] == "Default", SECONDS)
    tenant.wait_state(model, "NotEnabled", "PostpaidDisabled")


def test_b1_of_two_accounts_in_a_namespace_the_older_has_the_default_services(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.account("older", defaultServices=ALL)
    later_second(tenant, "older")
    tenant.account("younger", defaultServices=ALL)
    condition = tenant.wait_condition(
        "younger", "DefaultServices", "False", "OtherAccount", kind="BillingAccount"
    )
    assert f"{tenant.namespace}/older" in condition["message"]
    tenant.wait_condition("older", "DefaultServices", "True", kind="BillingAccount")
    wait_names(tenant, model)
    assert tenant.get(model)["spec"]["billingAccountRef"]["name"] == "older"
    # The younger one inherits the right, and Farebox creates the services that nobody enabled again for it.
    tenant.delete("BillingAccount", "older")
    tenant.wait_condition("younger", "DefaultServices", "True", kind="BillingAccount")
    wait_for(
        "it is the younger account's",
        lambda: tenant.get(model)["spec"]["billingAccountRef"]["name"] == "younger",
        SECONDS,
    )


def test_b1_a_selector_chooses_models_by_label(tenant: Tenant) -> None:
    small = tenant.model("small", labels={"size": "small"})
    enabled = tenant.model("enabled", labels={"size": "small"})
    tenant.model("big", labels={"size": "big"})
    chosen = {"models": "Selector", "selector": {"matchLabels": {"size": "small"}}}
    tenant.account(defaultServices=chosen, balance="5")
    wait_names(tenant, small, enabled)
    tenant.edit(enabled, postpaid=True)
    tenant.wait_state(enabled, "Running")
    # What nobody enabled goes with the label; what somebody enabled is theirs and stays.
    for model in (small, enabled):
        tenant.api.patch(path_of("Model", name=model), {"metadata": {"labels": {"size": "huge"}}})
    wait_names(tenant, enabled)
    tenant.wait_state(enabled, "Running")


def test_b1_a_model_that_is_retired_or_deleted_takes_its_unused_default_services_along(
    tenant: Tenant,
) -> None:
    retired, used, deleted = tenant.model("retired"), tenant.model("used"), tenant.model("deleted")
    tenant.account(defaultServices=ALL, balance="5")
    wait_names(tenant, retired, used, deleted)
    tenant.edit(used, postpaid=True)
    tenant.wait_state(used, "Running")
    tenant.edit_model(retired, retired=True)
    tenant.edit_model(used, retired=True)
    tenant.delete("Model", deleted)
    wait_names(tenant, used)
    tenant.wait_state(used, "Stopped", "ModelRetired")
    tenant.wait_shared(used, 0)
    tenant.edit_model(used, retired=False)
    tenant.edit_model(retired, retired=False)
    tenant.wait_state(used, "Running")
    wait_names(tenant, retired, used)


def test_b1_an_account_that_wants_none_any_more_loses_the_unused_ones(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.account(defaultServices=ALL)
    wait_names(tenant, model)
    path = path_of("BillingAccount", tenant.namespace, "acme")
    tenant.api.patch(path, {"spec": {"defaultServices": {"models": "None"}}})
    wait_names(tenant)
    tenant.api.patch(path, {"spec": {"defaultServices": {"models": "All"}}})
    wait_names(tenant, model)
    tenant.delete("BillingAccount", "acme")
    wait_names(tenant)


def test_b1_a_default_service_that_a_user_deletes_comes_back(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.account(defaultServices=ALL)
    wait_names(tenant, model)
    uid = tenant.get(model)["metadata"]["uid"]
    tenant.api.delete(path_of("InferenceService", tenant.namespace, model))
    wait_for("a new one", lambda: tenant.get(model)["metadata"]["uid"] != uid, SECONDS)
    tenant.wait_state(model, "NotEnabled", "PostpaidDisabled")


@pytest.fixture
def policy(tenant: Tenant) -> Iterator[str]:
    """A policy of somebody else's that lets no service into the tenant's namespace; its path."""
    name, collection = f"none-{tenant.unique}", "/apis/admissionregistration.k8s.io/v1/validatingadmission"
    rule = {
        "apiGroups": ["farebox.dev"],
        "apiVersions": ["*"],
        "operations": ["CREATE"],
        "resources": ["inferenceservices"],
    }
    here = {"matchLabels": {"kubernetes.io/metadata.name": tenant.namespace}}
    spec = {
        "matchConstraints": {"resourceRules": [rule], "namespaceSelector": here},
        "validations": [{"expression": "false", "message": "no services here, says the platform team"}],
    }
    binding = {"policyName": name, "validationActions": ["Deny"]}
    for plural, part in (("policies", spec), ("policybindings", binding)):
        tenant.api.create(f"{collection}{plural}", {"metadata": {"name": name}, "spec": part})
    probe = manifest(
        "InferenceService", "probe", {"modelRef": {"name": "x"}, "billingAccountRef": {"name": "x"}}
    )

    def acts() -> bool:
        try:
            tenant.api.create(f"{path_of('InferenceService', tenant.namespace)}?dryRun=All", probe)
        except ApiError as error:
            return "no services here" in error.message
        return False

    wait_for("the policy acts", acts, SECONDS)
    yield f"{collection}policybindings/{name}"
    for plural in ("policybindings", "policies"):
        tenant.api.delete(f"{collection}{plural}/{name}")


def test_b23_default_services_that_a_policy_refuses_are_reported_and_delay_nothing(
    tenant: Tenant, policy: str
) -> None:
    model = tenant.model()
    tenant.account(defaultServices=ALL)
    condition = tenant.wait_condition("acme", "DefaultServices", "False", "Refused", kind="BillingAccount")
    assert model in condition["message"]
    assert "says the platform team" in condition["message"]
    tenant.wait_event("acme", "Refused", "Warning", kind="BillingAccount")
    tenant.wait_topup(tenant.topup("7"))
    tenant.wait_account(balance="7.00", state="Active")
    tenant.api.delete(policy)

    def nudged() -> bool:
        # A policy acts for a moment after it is gone.
        path = path_of("BillingAccount", tenant.namespace, "acme")
        tenant.api.patch(path, {"metadata": {"annotations": {"nudge": uuid.uuid4().hex}}})
        return model in names(tenant)

    wait_for("the service without the policy", nudged, SECONDS, poll_seconds=0.5)
    tenant.wait_condition("acme", "DefaultServices", "True", kind="BillingAccount")


@pytest.mark.parametrize("how", [(), ("--server-side", "--force-conflicts")], ids=["client", "server"])
def test_b2_a_default_service_is_enabled_by_applying_a_yaml(tenant: Tenant, how: tuple[str, ...]) -> None:
    model = tenant.model()
    tenant.account(defaultServices=ALL, balance="5")
    wait_names(tenant, model)
    tenant.wait_state(model, "NotEnabled", "PostpaidDisabled")
    tenant.kubectl("apply", *how, "-f", "-", input=enabling_yaml(tenant, model))
    status = tenant.wait_state(model, "Running")
    assert status["billingMode"] == "PayAsYouGo"
    assert status["enabledAt"]
    tenant.wait_shared(model, 1)


def test_b1_a_default_service_that_git_has_before_the_account_exists_is_adopted(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.apply(enabling_yaml(tenant, model))
    tenant.wait_state(model, "Stopped", "AccountNotFound")
    tenant.account(defaultServices=ALL, balance="5")
    tenant.wait_state(model, "Running")
    tenant.wait_condition("acme", "DefaultServices", "True", kind="BillingAccount")
