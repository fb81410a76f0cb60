"""Objects that go and come back: services, models, accounts, namespaces; ownerless backends (B11, B24)."""

import uuid

import pytest

from farebox.api import DeploymentServing, InferenceService
from farebox.controller.reconcile.resources import dedicated_backend, endpoint
from farebox.kube.names import core_path, deployment_path
from tests.integration.tenants import SECONDS, Tenant, template
from tests.support.api import JSONObject, path_of
from tests.support.stack import BACKENDS
from tests.support.waiting import wait_for

pytestmark = pytest.mark.plane


def test_b24_a_deleted_service_is_gone_at_once_and_its_backend_follows(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.account(balance="5")
    tenant.service("own", model, replicas=2)
    tenant.wait_running("own", 2)
    backend = tenant.backend_name("own")
    tenant.kubectl("delete", "infsvc/own", "--timeout=60s")
    tenant.wait_gone(deployment_path(BACKENDS, backend))
    tenant.wait_gone(core_path("services", BACKENDS, backend))
    wait_for("no pods", lambda: not tenant.pods(backend), SECONDS)
    tenant.wait_account(services={"notEnabled": 0, "creating": 0, "running": 0, "stopped": 0})


def test_b11_a_service_recreated_under_its_name_inherits_nothing(tenant: Tenant) -> None:
    model, other = tenant.model(), tenant.model("other")
    tenant.account(balance="5")
    tenant.service("again", model, replicas=2)
    tenant.wait_running("again", 2)
    uid = tenant.get("again")["metadata"]["uid"]
    tenant.delete("InferenceService", "again")
    tenant.service("again", other, replicas=1)
    tenant.wait_running("again", 1)
    labels = tenant.api.get(deployment_path(BACKENDS, tenant.backend_name("again")))["metadata"]["labels"]
    assert labels["farebox.dev/service-uid"] == tenant.get("again")["metadata"]["uid"] != uid
    assert labels["farebox.dev/model"] == other
    # And with the other kind of backend: the old one is not left behind.
    tenant.delete("InferenceService", "again")
    tenant.service("again", model, dedicated=False)
    tenant.wait_state("again", "Running")
    tenant.wait_gone(deployment_path(BACKENDS, tenant.backend_name("again")))
    tenant.wait_shared(model, 1)


def test_a_service_is_stopped_while_its_model_is_missing(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.account(balance="5")
    tenant.service("own", model, replicas=2)
    tenant.service("shared", model, dedicated=False)
    tenant.wait_running("own", 2)
    tenant.wait_state("shared", "Running")
    tenant.delete("Model", model)
    tenant.wait_stopped("own", "ModelNotFound")
    condition = tenant.wait_condition("own", "Stalled", "True", "ModelNotFound")
    assert model in condition["message"]
    tenant.wait_state("shared", "Stopped", "ModelNotFound")
    tenant.wait_gone(deployment_path(BACKENDS, f"m-{model}"))
    assert tenant.model() == model
    tenant.wait_running("own", 2)
    tenant.wait_state("shared", "Running")
    tenant.wait_shared(model, 1)


def test_b11_an_account_deleted_and_made_again_owes_what_it_owed(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.account(balance="5")
    tenant.service("own", model)
    tenant.service("shared", model, dedicated=False)
    tenant.wait_running("own", 1)
    tenant.wait_state("shared", "Running")
    tenant.charge("own", model, 8)
    tenant.wait_stopped("own", "Overdue")
    tenant.delete("BillingAccount", "acme")
    tenant.wait_stopped("own", "AccountNotFound")
    tenant.wait_state("shared", "Stopped", "AccountNotFound")
    tenant.account()
    tenant.wait_stopped("own", "Overdue")
    tenant.wait_account(balance="-3.00", state="Overdue")
    tenant.topup("3.01")
    tenant.wait_running("own", 1)
    tenant.wait_state("shared", "Running")
    # Deleted while there is money on it: the services stand still, and nothing is lost.
    tenant.delete("BillingAccount", "acme")
    tenant.wait_stopped("own", "AccountNotFound")
    tenant.account()
    tenant.wait_running("own", 1)
    tenant.wait_account(balance="0.01", state="Active")


def test_b11_an_account_made_again_in_another_currency_has_no_money_in_it(tenant: Tenant) -> None:
    tenant.account(balance="5")
    foreign = tenant.model(
        prices={"currency": "ZZZ", "tiers": [{"input": "1", "cachedInput": "1", "output": "1"}]}
    )
    tenant.service("own", foreign)
    tenant.wait_stopped("own", "CurrencyMismatch")
    tenant.delete("BillingAccount", "acme")
    tenant.account(currency="ZZZ")
    paid = tenant.topup("7")
    condition = tenant.wait_condition("acme", "Stalled", "True", "CurrencyChanged", kind="BillingAccount")
    assert tenant.currency in condition["message"]
    # What is left of the other currency neither shows nor starts anything, and nothing is added to it.
    waiting = tenant.wait_condition(paid, "Stalled", "True", "CurrencyChanged", kind="TopUp")
    assert tenant.currency in waiting["message"]
    tenant.wait_condition("own", "Ready", "Unknown")
    assert tenant.status("own")["phase"] == "Stopped"
    shown = tenant.status("acme", "BillingAccount")
    assert not {"balance", "available", "state"} & shown.keys(), shown
    tenant.delete("BillingAccount", "acme")
    tenant.account()
    tenant.wait_topup(paid)
    tenant.wait_account(balance="12.00", state="Active")


def test_a_service_on_a_model_in_another_currency_says_so(tenant: Tenant) -> None:
    model = tenant.model(
        prices={"currency": "ZZZ", "tiers": [{"input": "1", "cachedInput": "1", "output": "1"}]}
    )
    tenant.account(balance="5")
    tenant.service("own", model)
    tenant.wait_stopped("own", "CurrencyMismatch")
    condition = tenant.wait_condition("own", "Ready", "False", "CurrencyMismatch")
    assert "ZZZ" in condition["message"]
    assert tenant.currency in condition["message"]


def test_b24_a_namespace_with_everything_in_it_is_deleted_without_hanging(tenant: Tenant) -> None:
    model = tenant.model()
    home = f"{tenant.namespace}-home"
    tenant.make_namespace(home)
    tenant.account(namespace=home, balance="5", defaultServices={"models": "All"})
    tenant.account("poor", namespace=home)
    for name, account in (("running", "acme"), ("overdue", "poor")):
        tenant.service(name, model, account=account, namespace=home)
    path = path_of("InferenceService", home, "running")
    wait_for("it runs", lambda: tenant.api.get(path)["status"]["phase"] == "Running", SECONDS)
    for kind in ("InferenceService", "BillingAccount", "TopUp"):
        items = tenant.api.get(path_of(kind, home))["items"]
        assert items
        assert all("finalizers" not in item["metadata"] for item in items)
    backends = f"{deployment_path(BACKENDS)}?labelSelector=farebox.dev/service-namespace={home}"
    assert tenant.api.get(backends)["items"]
    tenant.stack.cluster.kubectl("delete", "namespace", home, "--timeout=60s")
    wait_for("no backend", lambda: not tenant.api.get(backends)["items"], SECONDS)


@pytest.mark.parametrize("there", ["InferenceService", "BillingAccount", "TopUp", "Model"])
def test_b24_nothing_of_farebox_has_a_finalizer(tenant: Tenant, there: str) -> None:
    model = tenant.model()
    tenant.account(balance="5")
    tenant.service("own", model)
    tenant.wait_running("own", 1)
    name = {"InferenceService": "own", "BillingAccount": "acme", "Model": model}.get(there)
    name = name or tenant.api.get(path_of("TopUp", tenant.namespace))["items"][0]["metadata"]["name"]
    assert "finalizers" not in tenant.get(name, there)["metadata"]
    assert "annotations" not in tenant.get(name, there)["metadata"], "nor does it keep anything there"
    tenant.delete(there, name)


def test_b24_a_service_held_by_somebody_elses_finalizer_keeps_working(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.account(balance="5")
    tenant.service("held", model)
    tenant.wait_running("held", 1)
    path = path_of("InferenceService", tenant.namespace, "held")
    tenant.api.patch(path, {"metadata": {"finalizers": ["example.com/mine"]}})
    tenant.api.delete(path)
    tenant.topup("1")
    tenant.edit("held", replicas=2)
    tenant.wait_backend("held", 2)
    tenant.api.patch(path, {"metadata": {"finalizers": None}})
    tenant.wait_gone(deployment_path(BACKENDS, tenant.backend_name("held")))


def ownerless(tenant: Tenant, name: str) -> JSONObject:
    """The Deployment that Farebox would make for a service, which does not exist."""
    metadata = {"name": name, "namespace": tenant.namespace, "uid": str(uuid.uuid4())}
    spec = {"modelRef": {"name": "none"}, "billingAccountRef": {"name": "none"}, "dedicated": True}
    service = InferenceService.model_validate({"metadata": metadata, "spec": spec})
    return dedicated_backend(BACKENDS, service, DeploymentServing(template=template()), 1)


def test_b24_a_backend_without_its_service_is_deleted(tenant: Tenant) -> None:
    orphan = ownerless(tenant, "gone")
    tenant.api.create(deployment_path(BACKENDS), orphan)
    tenant.api.create(
        core_path("services", BACKENDS), endpoint(orphan, DeploymentServing(template=template()))
    )
    name = orphan["metadata"]["name"]
    tenant.wait_gone(deployment_path(BACKENDS, name))
    tenant.wait_gone(core_path("services", BACKENDS, name))


def test_what_is_not_fareboxs_in_the_backends_namespace_is_left_alone(tenant: Tenant) -> None:
    model = tenant.model()
    tenant.account(balance="5")
    name = f"foreign-{tenant.unique}"
    labels = {"app": name}
    pods = {"metadata": {"labels": labels}, "spec": template()["spec"]}
    body = {"metadata": {"name": name}, "spec": {"selector": {"matchLabels": labels}, "template": pods}}
    made = tenant.api.create(deployment_path(BACKENDS), body)
    tenant.service("own", model)
    tenant.wait_running("own", 1)
    tenant.delete("InferenceService", "own")
    tenant.wait_gone(deployment_path(BACKENDS, tenant.backend_name("own")))
    found = tenant.api.get(deployment_path(BACKENDS, name))
    assert (found["spec"], found["metadata"]["uid"]) == (made["spec"], made["metadata"]["uid"])
    tenant.api.delete(deployment_path(BACKENDS, name))
