"""What a tenant with the `admin` role in its namespace can do, and cannot (B22), with its own credentials."""

from collections.abc import Iterator

import pytest

from farebox.kube.names import core_path, deployment_path
from tests.integration.tenants import SECONDS, Tenant
from tests.support.api import Api, ApiError, JSONObject, manifest, path_of
from tests.support.stack import BACKENDS, IMAGE, SYSTEM
from tests.support.waiting import wait_for

pytestmark = pytest.mark.plane


@pytest.fixture
def person(tenant: Tenant) -> Iterator[Api]:
    """A client with a token of a ServiceAccount that is `admin` of the tenant's namespace."""
    account = f"--serviceaccount={tenant.namespace}:default"
    tenant.kubectl("create", "rolebinding", "admins", "--clusterrole=admin", account)
    kubeconfig = tenant.stack.cluster.service_account_kubeconfig(tenant.namespace, "default")
    api = Api(kubeconfig)
    wait_for("its rights", lambda: "items" in api.get(path_of("InferenceService", tenant.namespace)), SECONDS)
    return api


def service(tenant: Tenant, name: str, model: str, **spec: object) -> JSONObject:
    body = {"modelRef": {"name": model}, "billingAccountRef": {"name": "acme"}, "postpaid": True} | spec
    return manifest("InferenceService", name, body, tenant.namespace)


def test_b22_a_tenant_runs_and_scales_its_services_by_itself(tenant: Tenant, person: Api) -> None:
    model = tenant.model()
    tenant.account(balance="5")
    path = path_of("InferenceService", tenant.namespace)
    person.create(path, service(tenant, "mine", model, dedicated=True))
    tenant.wait_running("mine", 1)
    person.patch(f"{path}/mine/scale", {"spec": {"replicas": 2}})
    tenant.wait_running("mine", 2)
    person.patch(f"{path}/mine", {"spec": {"postpaid": False}})
    tenant.wait_stopped("mine", "PostpaidDisabled")
    tenant.wait_account(balance="5.00")
    assert person.get(path_of("BillingAccount", tenant.namespace, "acme"))["status"]["balance"] == "5.00"
    assert person.get(path_of("Model", name=model))
    person.delete(f"{path}/mine")
    tenant.wait_gone(f"{path}/mine")


def test_b22_a_tenant_cannot_grant_itself_anything(tenant: Tenant, person: Api) -> None:
    model = tenant.model()
    tenant.account()
    tenant.service("mine", model)
    tenant.wait_stopped("mine", "Overdue")
    home = tenant.namespace
    gift = {"billingAccountRef": {"name": "acme"}, "amount": "100", "reference": "gift"}
    posts = [
        (path_of("TopUp", home), manifest("TopUp", "gift", gift, home)),
        (path_of("BillingAccount", home), manifest("BillingAccount", "my", {"currency": "USD"}, home)),
        (path_of("Model"), manifest("Model", "mine", tenant.get(model, "Model")["spec"])),
        (deployment_path(BACKENDS), {"metadata": {"name": "x"}}),
        (core_path("pods", BACKENDS), {"metadata": {"name": "x"}}),
        (core_path("secrets", SYSTEM), {"metadata": {"name": "x"}}),
    ]
    running = {"status": {"phase": "Running", "stopReasons": []}}
    patches = [
        (path_of("BillingAccount", home, "acme"), {"spec": {"creditLimit": "100"}}),
        (path_of("BillingAccount", home, "acme", "status"), {"status": {"balance": "100"}}),
        (path_of("InferenceService", home, "mine", "status"), running),
        (path_of("Model", name=model), {"spec": {"prices": {"tiers": []}}}),
        (path_of("Model", name=model, subresource="scale"), {"spec": {"replicas": 9}}),
        (deployment_path(BACKENDS, tenant.backend_name("mine"), "scale"), {"spec": {"replicas": 1}}),
        (core_path("namespaces", name=home), {"metadata": {"labels": {"team": "rich"}}}),
    ]
    reads = [
        deployment_path(BACKENDS),
        core_path("pods", BACKENDS),
        core_path("secrets", BACKENDS),
        core_path("secrets", SYSTEM),
        path_of("InferenceService", "default"),
        path_of("BillingAccount", "default"),
    ]
    for path, body in posts:
        refused(lambda path=path, body=body: person.create(path, body))  # type: ignore[misc]
    for path, body in patches:
        refused(lambda path=path, body=body: person.patch(path, body))  # type: ignore[misc]
    for path in reads:
        refused(lambda path=path: person.get(path))  # type: ignore[misc]
    # The plain edit of a status: the API server drops it.
    person.patch(path_of("InferenceService", home, "mine"), running)
    tenant.wait_stopped("mine", "Overdue")


def refused(attempt: object) -> None:
    assert callable(attempt)
    with pytest.raises(ApiError) as error:
        attempt()
    assert error.value.status == 403, error.value


@pytest.mark.parametrize("field", ["template", "image", "serviceAccountName", "podSpec", "serving"])
def test_b22_a_tenant_cannot_choose_what_runs(tenant: Tenant, person: Api, field: str) -> None:
    path = f"{path_of('InferenceService', tenant.namespace)}?fieldValidation=Strict"
    with pytest.raises(ApiError, match=f'unknown field "spec.{field}"'):
        person.create(path, service(tenant, "mine", "m", **{field: {"serviceAccountName": "x"}}))


def test_b22_labels_and_annotations_of_a_service_reach_no_backend(tenant: Tenant, person: Api) -> None:
    model = tenant.model()
    tenant.account(balance="5")
    tenant.service("victim", model)
    tenant.wait_running("victim", 1)
    victim = tenant.api.get(deployment_path(BACKENDS, tenant.backend_name("victim")))
    body = service(tenant, "mine", model, dedicated=True)
    claims = {key: text for key, text in victim["metadata"]["labels"].items() if "farebox.dev" in key}
    body["metadata"] |= {
        "labels": claims | {"app.kubernetes.io/managed-by": "farebox"},
        "annotations": claims,
    }
    person.create(path_of("InferenceService", tenant.namespace), body)
    tenant.wait_running("mine", 1)
    mine = tenant.api.get(deployment_path(BACKENDS, tenant.backend_name("mine")))
    assert mine["metadata"]["labels"]["farebox.dev/service-name"] == "mine"
    assert mine["spec"]["template"]["spec"]["containers"][0]["image"] == IMAGE
    person.delete(path_of("InferenceService", tenant.namespace, "mine"))
    tenant.wait_gone(deployment_path(BACKENDS, tenant.backend_name("mine")))
    after = tenant.api.get(deployment_path(BACKENDS, tenant.backend_name("victim")))
    assert after["metadata"]["uid"] == victim["metadata"]["uid"]
    tenant.wait_running("victim", 1)


def test_b22_another_namespaces_account_pays_only_if_it_says_so(tenant: Tenant) -> None:
    model = tenant.model()
    home = f"{tenant.namespace}-home"
    tenant.make_namespace(home)
    tenant.account(namespace=home, balance="5")
    account = {"name": "acme", "namespace": home}
    tenant.service("guest", model, billingAccountRef=account)
    tenant.wait_stopped("guest", "AccountNotAllowed")
    condition = tenant.wait_condition("guest", "Stalled", "True", "AccountNotAllowed")
    assert f"does not allow services in namespace {tenant.namespace}" in condition["message"]
    path = path_of("BillingAccount", home, "acme")
    allow: list[tuple[JSONObject, bool]] = [
        ({"from": "All", "selector": None}, True),
        ({"from": "Same", "selector": None}, False),
        ({"from": "Selector", "selector": {"matchLabels": {"team": "guests"}}}, False),
    ]
    for allowed, runs in allow:
        tenant.api.patch(path, {"spec": {"allowedNamespaces": allowed}})
        if runs:
            tenant.wait_running("guest", 1)
        else:
            tenant.wait_stopped("guest", "AccountNotAllowed")
    # A selector is evaluated again when the namespace's labels change; a tenant cannot change them.
    namespace = core_path("namespaces", name=tenant.namespace)
    tenant.api.patch(namespace, {"metadata": {"labels": {"team": "guests"}}})
    tenant.wait_running("guest", 1)
    tenant.api.patch(namespace, {"metadata": {"labels": {"team": None}}})
    tenant.wait_stopped("guest", "AccountNotAllowed")


def test_b22_a_service_cannot_be_made_a_default_one_of_a_foreign_account(tenant: Tenant, person: Api) -> None:
    model = tenant.model()
    home = f"{tenant.namespace}-home"
    tenant.make_namespace(home)
    tenant.account(namespace=home, balance="5")
    account = {"name": "acme", "namespace": home}
    body = service(tenant, model, model, type="Default", billingAccountRef=account)
    person.create(path_of("InferenceService", tenant.namespace), body)
    tenant.wait_state(model, "Stopped", "AccountNotAllowed")
    # It is not one of the account's Default services and does not affect them.
    tenant.api.patch(
        path_of("BillingAccount", home, "acme"), {"spec": {"defaultServices": {"models": "All"}}}
    )
    wait_for("its own", lambda: tenant.api.find(path_of("InferenceService", home, model)), SECONDS)
    tenant.api.patch(
        path_of("BillingAccount", home, "acme"), {"spec": {"defaultServices": {"models": "None"}}}
    )
    tenant.wait_gone(path_of("InferenceService", home, model))
    tenant.wait_state(model, "Stopped", "AccountNotAllowed")
